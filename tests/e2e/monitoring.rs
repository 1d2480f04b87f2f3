//! Metrics: what Prometheus reads of a real process, and the rules and the dashboard of `docs/monitoring` that are made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::http::Server;
use crate::support::metrics::{Prometheus, Sample, check_as_openmetrics, check_with_promtool, samples};
use crate::support::pipe::{End, Key, Pipe, field};
use crate::support::poll_until;
use crate::support::process::{Process, run};
use crate::support::site::Site;
use crate::support::socket::{Port, assert_echoes, connect_from, echo};

/// Where a process serves its status.
struct Status(SocketAddr);

impl Status {
    fn of(process: &Process) -> Self {
        let line = process.await_line(&["serving the status"]);
        let source = field(&line, "source").replace(['[', ']'], "");
        Self(source.parse().expect("an IPv4 address"))
    }

    /// All metrics in Prometheus's text format.
    #[track_caller]
    fn text(&self) -> String {
        let response = Server::Tcp(self.0).get("/metrics");
        assert_eq!(response.header("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        response.body
    }

    /// The same in OpenMetrics.
    #[track_caller]
    fn open_metrics(&self) -> String {
        let accept =
            [("Accept", "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4")];
        let response = Server::Tcp(self.0).request("GET", "/metrics", &accept, "");
        let media_type = Some("application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert_eq!(response.header("Content-Type"), media_type);
        response.body
    }

    /// All samples, of texts that promtool has nothing against, and with no series twice.
    #[track_caller]
    fn checked(&self) -> Vec<Sample> {
        let (text, open_metrics) = (self.text(), self.open_metrics());
        check_with_promtool(&text);
        check_as_openmetrics(&open_metrics);
        for text in [&text, &open_metrics] {
            let mut seen = BTreeSet::new();
            for sample in samples(text) {
                assert!(seen.insert(series(&sample)), "{sample:?} is there twice:\n{text}");
            }
        }
        samples(&text)
    }

    /// Waits until a sample with this name and these labels among its own has this value.
    #[track_caller]
    fn await_value(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let what = format!("{name} {labels:?} is {value}");
        poll_until(&what, || is(value_of(&samples(&self.text()), name, labels), value).then_some(()));
    }
}

/// What tells a series from others.
fn series(sample: &Sample) -> (String, BTreeMap<String, String>) {
    (sample.name.clone(), sample.labels.clone())
}

/// The value of the one sample that has this name, and these labels among its own.
#[track_caller]
fn value_of(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |sample: &&Sample| {
        sample.name == name
            && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|has| has == value))
    };
    let found: Vec<_> = samples.iter().filter(has).collect();
    assert_eq!(found.len(), 1, "one {name} with {labels:?}: {found:?}");
    found[0].value
}

/// Whether two counts are the same.
fn is(value: f64, expected: f64) -> bool {
    (value - expected).abs() < f64::EPSILON
}

/// Whether it never goes back.
fn is_cumulative(sample: &Sample) -> bool {
    ["_total", "_bucket", "_count", "_sum"].iter().any(|suffix| sample.name.ends_with(suffix))
}

/// One process with both ends of the pipes `good`, to an echo, and `down`, whose target refuses connections; and with `wrong`, which
/// leads to the responder of `good` with another key.
struct Scene {
    site: Site,
    process: Process,
    status: Status,
    pipes: String,
    _refuses: Port,
}

impl Scene {
    fn start() -> Self {
        let (site, refuses) = (Site::with_key(), Port::reserve());
        site.add_key("other.key");
        let wrong = site.encrypt("wrong", site.socket("good-sealed")).replace("test.key", "other.key");
        let pipes =
            [site.both_ends("good", echo()), site.both_ends("down", refuses.address()), wrong].concat();
        let pipes = format!("status = '127.0.0.1:0'\n{pipes}");
        let process = site.serve(&pipes);
        Self { status: Status::of(&process), site, process, pipes, _refuses: refuses }
    }

    /// A client is served at `good`, and others fail at `down` and `wrong`. Returns when that is counted at all ends.
    fn be_used(&self) {
        assert_echoes(&mut self.site.connect("good"), "hello");
        for name in ["down", "wrong"] {
            let mut client = self.site.connect(name);
            // spipe may have ended the connection already.
            let _ended = client.write_all(b"hello");
            let mut answer = Vec::new();
            let _reset = client.read_to_end(&mut answer);
            assert_eq!(answer, b"", "{name} answers");
        }
        let closed = "spipe_connections_closed_total";
        for pipe in ["good", "good-sealed"] {
            self.status.await_value(closed, &[("pipe", pipe), ("reason", "finished")], 1.0);
        }
        self.status.await_value(closed, &[("pipe", "down"), ("reason", "target_unreachable")], 1.0);
        let refused = [("pipe", "down-sealed"), ("result", "refused")];
        self.status.await_value("spipe_target_dials_total", &refused, 1.0);
        let wrong = [("pipe", "good-sealed"), ("cause", "wrong_key_or_label")];
        self.status.await_value("spipe_handshake_failures_total", &wrong, 1.0);
    }
}

#[test]
fn all_series_are_there_from_the_start_and_those_of_events_at_zero() {
    let scene = Scene::start();
    let first = scene.status.checked();
    for sample in first.iter().filter(|sample| is_cumulative(sample)) {
        // What the start itself takes.
        if sample.name != "process_cpu_seconds_total" {
            assert!(is(sample.value, 0.0), "{sample:?}");
        }
    }
    for (name, label, values) in [
        ("spipe_reloads_total", "result", "failed ok"),
        ("spipe_name_lookups_total", "result", "failed ok"),
        ("spipe_connections_established_total", "cipher", "aegis256x4 aes256gcm chacha20poly1305"),
        ("spipe_bytes_total", "direction", "from_target to_target"),
        (
            "spipe_connections_closed_total",
            "reason",
            "broken busy closed expired finished forged idle key_revoked local_reset other peer_reset stopped \
             target_down target_unreachable truncated",
        ),
        (
            "spipe_handshake_failures_total",
            "cause",
            "busy denied incomplete key_refused no_common_cipher no_proxy_header other replay_or_no_open timeout \
             turned_out wrong_key_or_label",
        ),
        ("spipe_target_dials_total", "result", "connected local proxy refused timeout tls unresolved"),
    ] {
        let of_family = first.iter().filter(|sample| sample.name == name);
        let found: BTreeSet<_> = of_family.map(|sample| sample.labels[label].as_str()).collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), values.split(' ').collect::<Vec<_>>(), "{name}");
    }
    scene.be_used();
    let all = |samples: &[Sample]| samples.iter().map(series).collect::<BTreeSet<_>>();
    assert_eq!(all(&first), all(&scene.status.checked()), "failures make no new series");
}

#[test]
fn counters_do_not_go_back_over_reloads_that_succeed_or_fail() {
    let scene = Scene::start();
    scene.be_used();
    let before = scene.status.checked();
    let successful = "spipe_last_reload_successful";
    assert!(is(value_of(&before, successful, &[]), 1.0), "there was none that failed");
    scene.site.configure("nonsense");
    scene.process.fail_to_reload(&["pipes.toml:1: "]);
    // The log has it a moment earlier.
    scene.status.await_value("spipe_reloads_total", &[("result", "failed")], 1.0);
    assert!(is(value_of(&scene.status.checked(), successful, &[]), 0.0));
    scene.site.configure(format!(
        "{}max-connections = 7\n{}",
        scene.pipes,
        scene.site.encrypt("new", "127.0.0.1:9")
    ));
    scene.process.reload_successfully();
    scene.status.await_value("spipe_reloads_total", &[("result", "ok")], 1.0);
    let after = scene.status.checked();
    assert!(is(value_of(&after, successful, &[]), 1.0));
    assert!(is(value_of(&after, "spipe_connections_limit", &[("pipe", "wrong")]), 7.0));
    let values: BTreeMap<_, _> = after.iter().map(|sample| (series(sample), sample.value)).collect();
    for sample in before.iter().filter(|sample| is_cumulative(sample)) {
        assert!(values[&series(sample)] >= sample.value, "{sample:?} is {} now", values[&series(sample)]);
    }
}

#[test]
fn connections_of_a_key_that_a_reload_takes_away_are_still_counted() {
    let site = Site::with_key();
    let fingerprint = site.add_key("keys/away.key");
    fs::copy(site.path("test.key"), site.path("keys/stays.key")).expect("the file can be copied");
    let pipes = |keys: &str| {
        let front = site.encrypt("front", site.socket("back")).replace("test.key", "keys/away.key");
        format!("status = '127.0.0.1:0'\n{front}{}", site.decrypt("back", echo()).replace("test.key", keys))
    };
    let process = site.serve(pipes("keys"));
    let status = Status::of(&process);
    let mut client = site.connect("front");
    assert_echoes(&mut client, "before");
    site.configure(pipes("test.key"));
    process.reload_successfully();
    let key = [("pipe", "back"), ("key", fingerprint.as_str())];
    let counted = status.checked();
    assert!(is(value_of(&counted, "spipe_connections", &key), 1.0), "it takes a place");
    let established = |sample: &&Sample| {
        sample.name == "spipe_connections_established_total"
            && (&*sample.labels["pipe"], &*sample.labels["key"]) == ("back", &*fingerprint)
    };
    assert!(is(counted.iter().filter(established).map(|sample| sample.value).sum(), 1.0));
    assert_echoes(&mut client, "after");
    drop(client);
    status.await_value("spipe_connections", &key, 0.0);
}

#[test]
fn no_label_has_the_address_of_a_client_or_a_stranger() {
    let status = ["--status", "127.0.0.1:0"];
    let pipe = Pipe::to(echo()).args(&status).start();
    let mut client = connect_from([127, 0, 0, 5], pipe.initiator.address());
    assert_echoes(&mut client, "hello");
    let mut stranger = connect_from([127, 0, 0, 6], pipe.responder.address());
    let _reset = stranger.write_all(&[0; 4096]);
    let (initiator, responder) = (Status::of(&pipe.initiator.process), Status::of(&pipe.responder.process));
    responder.await_value("spipe_handshake_failures_total", &[("cause", "wrong_key_or_label")], 1.0);
    initiator.await_value("spipe_connections", &[], 1.0);
    for text in [&initiator, &responder].map(|status| status.text() + &status.open_metrics()) {
        for address in ["127.0.0.5", "127.0.0.6"] {
            assert!(!text.contains(address), "{address} is in:\n{text}");
        }
    }
}

#[test]
fn names_with_quotes_backslashes_and_line_breaks_do_not_break_the_format() {
    let site = Site::with_key();
    let name = r#"a "b" \n \ {c="d"} é ü 日本"#;
    let target = format!("{}/t\"\\\n1.sock", site.name(""));
    let pipe = site.encrypt("plain", "TARGET").replace("\"plain\"", &format!("'{name}'"));
    let escaped = target.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    let process = site.serve(format!("status = '127.0.0.1:0'\n{}", pipe.replace("TARGET", &escaped)));
    let found = Status::of(&process).checked();
    assert!(is(value_of(&found, "spipe_pipe_up", &[("pipe", name)]), 1.0));
    let targets = found.iter().filter(|sample| sample.name == "spipe_target_up");
    let targets: Vec<_> = targets.map(|sample| sample.labels["target"].as_str()).collect();
    assert_eq!(targets.len(), 1);
    assert!(targets[0].ends_with("t\"\\\n1.sock"), "{targets:?}");
}

#[test]
fn pipes_that_share_a_source_and_a_pipe_that_has_their_names_are_not_one_series() {
    let site = Site::with_key();
    site.add_key("other.key");
    let one = site.decrypt("one", "127.0.0.1:9");
    let two = site.decrypt("two", "127.0.0.1:9");
    let two = two.replace(&site.socket("two"), &site.socket("one")).replace("test.key", "other.key");
    let both = site.encrypt("one,two", "127.0.0.1:9");
    let process = site.serve(["status = '127.0.0.1:0'\n", &one, &two, &both].concat());
    let found = Status::of(&process).checked();
    let up = found.iter().filter(|sample| sample.name == "spipe_pipe_up");
    let pipes: Vec<_> = up.map(|sample| sample.labels["pipe"].as_str()).collect();
    assert_eq!(pipes, ["one", "two", "one,two", "one,two,"]);
}

fn document(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

/// Families of metrics: their types and labels by their names.
type Families = BTreeMap<String, (String, BTreeSet<String>)>;

/// What `docs/STATUS.md` says of metrics.
fn section() -> String {
    let document = document("STATUS.md");
    let (_, section) = document.split_once("\n## Metrics\n").expect("the section");
    section.split("\n## ").next().unwrap_or_default().to_owned()
}

/// The families of its table.
fn documented() -> Families {
    let section = section();
    let row = |row: &str| {
        let cells: Vec<_> = row.strip_prefix("| `")?.split(" | ").collect();
        let labels = cells[2].split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect();
        Some((cells[0].trim_end_matches('`').to_owned(), (cells[1].to_owned(), labels)))
    };
    section.lines().filter_map(row).collect()
}

/// The families of a text.
fn exposed(text: &str) -> Families {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut families: Families =
        types.map(|(name, kind)| (name.to_owned(), (kind.to_owned(), BTreeSet::new()))).collect();
    for Sample { name, labels, .. } in samples(text) {
        let suffixes = ["_bucket", "_sum", "_count"];
        let of_histogram = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
        let name = of_histogram.filter(|name| families.contains_key(*name)).unwrap_or(&name);
        let (_, known) = families.get_mut(name).unwrap_or_else(|| panic!("{name} has a type"));
        known.extend(labels.into_keys().filter(|label| label != "le"));
    }
    families
}

#[test]
fn the_table_of_metrics_has_each_with_its_type_and_labels_and_no_other() {
    let scene = Scene::start();
    let (documented, exposed) = (documented(), exposed(&scene.status.text()));
    assert!(exposed.len() > 20, "{exposed:?}");
    let only = |these: &Families, others: &Families| {
        these
            .iter()
            .filter(|(name, what)| others.get(*name) != Some(what))
            .map(|(name, _)| name.clone())
            .collect()
    };
    let (wrong, missing): (Vec<String>, Vec<String>) =
        (only(&documented, &exposed), only(&exposed, &documented));
    assert_eq!((&wrong, &missing), (&vec![], &vec![]), "{documented:#?}\n{exposed:#?}");
}

#[test]
fn each_cause_reason_result_direction_and_cipher_is_documented() {
    let (scene, section) = (Scene::start(), section());
    let fixed = ["cause", "reason", "result", "direction", "cipher"];
    let labels = samples(&scene.status.text()).into_iter().flat_map(|sample| sample.labels);
    let words: BTreeSet<_> =
        labels.filter(|(label, _)| fixed.contains(&&**label)).map(|(_, word)| word).collect();
    assert!(words.len() > 30, "{words:?}");
    let missing: Vec<_> = words.iter().filter(|word| !section.contains(&format!("`{word}`"))).collect();
    assert_eq!(missing, Vec::<&String>::new());
}

/// The expressions of the guide's table of questions.
fn of_the_guide() -> Vec<String> {
    let guide = document("guides/monitoring.md");
    let (_, table) = guide.split_once("| question | expression |").expect("the table");
    let rows = table.lines().skip(2).map_while(|row| row.strip_suffix("` |")?.split_once(" | `"));
    rows.map(|(_, expression)| expression.to_owned()).collect()
}

/// The expressions of the alert rules; each has a line of its own.
fn of_alerts() -> Vec<String> {
    let rules = document("monitoring/alerts.yml");
    let expressions = rules.lines().filter_map(|line| line.trim_start().strip_prefix("expr: "));
    let expressions: Vec<_> = expressions.map(ToOwned::to_owned).collect();
    assert_eq!(expressions.len(), alerts().len());
    expressions
}

/// The names of the alert rules.
fn alerts() -> Vec<String> {
    let rules = document("monitoring/alerts.yml");
    rules
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- alert: ").map(ToOwned::to_owned))
        .collect()
}

/// All values of the fields `wanted` in a document, or, without that, all texts.
fn texts(value: &Value, wanted: Option<&str>) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().flat_map(|value| texts(value, wanted)).collect(),
        Value::Object(fields) => {
            let of_field = |(name, value): (&String, &Value)| match value {
                Value::String(text) if wanted.is_none_or(|wanted| wanted == name) => vec![text.clone()],
                Value::String(_) => Vec::new(),
                other => texts(other, wanted),
            };
            fields.iter().flat_map(of_field).collect()
        }
        Value::String(text) if wanted.is_none() => vec![text.clone()],
        _ => Vec::new(),
    }
}

fn dashboard() -> Value {
    serde_json::from_str(&document("monitoring/grafana-dashboard.json")).expect("the dashboard is JSON")
}

#[test]
fn each_metric_of_the_rules_and_the_dashboard_exists() {
    let scene = Scene::start();
    let exist: BTreeSet<_> = samples(&scene.status.text()).into_iter().map(|sample| sample.name).collect();
    let texts = [texts(&dashboard(), None), of_alerts(), of_the_guide()].concat();
    let words = texts.iter().flat_map(|text| text.split(|it: char| !it.is_ascii_alphanumeric() && it != '_'));
    let named: BTreeSet<_> =
        words.filter(|word| word.starts_with("spipe_") || word.starts_with("process_")).collect();
    assert!(named.len() > 15, "{named:?}");
    let unknown: Vec<_> = named.into_iter().filter(|name| !exist.contains(*name)).collect();
    assert_eq!(unknown, Vec::<&str>::new());
}

#[test]
fn prometheus_answers_each_query_of_the_rules_and_has_data_for_each_of_the_dashboard_and_the_guide() {
    let scene = Scene::start();
    let prometheus = Prometheus::scrape(scene.status.0);
    assert_eq!(prometheus.await_scrape(), Ok(()));
    scene.be_used();
    // Both have failed: the one's target, and the other's handshake.
    poll_until("Prometheus has seen what there was", || {
        let without_target = prometheus.query("max without (target) (spipe_target_up) == 0");
        let pipes: Vec<_> =
            without_target.iter().filter_map(|series| series["metric"]["pipe"].as_str()).collect();
        (pipes == ["down-sealed", "wrong"]).then_some(())
    });
    let (panels, guide) = (texts(&dashboard(), Some("expr")), of_the_guide());
    assert!(panels.len() > 20 && guide.len() > 5, "{panels:?} {guide:?}");
    for query in [panels, guide].concat() {
        let query = query.replace("$instance", ".*").replace("$pipe", ".*").replace("$__rate_interval", "1m");
        assert!(!query.contains('$'), "{query}");
        assert!(!prometheus.query(&query).is_empty(), "no data: {query}");
    }
    for query in of_alerts() {
        let alerting = prometheus.query(&query);
        let is_fine = ["up{", "absent(", "spipe_pipe_up"].iter().any(|start| query.starts_with(start));
        assert!(!is_fine || alerting.is_empty(), "{query}: {alerting:?}");
    }
}

#[track_caller]
fn assert_promtool_approves(args: &[&str], file: &str) {
    let ended = run(Command::new("promtool").args(args).arg(path(file)));
    assert_eq!(ended.code, Some(0), "{file}: {} {}", ended.text(), ended.stderr);
    assert!(ended.text().contains("SUCCESS"), "{file}: {}", ended.text());
}

#[test]
fn promtool_approves_of_the_configuration_and_the_rules() {
    assert_promtool_approves(&["check", "config"], "monitoring/prometheus.yml");
    assert_promtool_approves(&["check", "rules"], "monitoring/alerts.yml");
}

#[test]
fn each_rule_is_tested_to_fire_and_not_to_fire() {
    assert_promtool_approves(&["test", "rules"], "monitoring/alerts_test.yml");
    let tests = document("monitoring/alerts_test.yml");
    let names: BTreeSet<_> = tests.lines().filter_map(|line| line.strip_prefix("  - name: ")).collect();
    let both =
        alerts().into_iter().flat_map(|name| [format!("{name} fires"), format!("{name} does not fire")]);
    let expected: BTreeSet<_> = both.collect();
    assert_eq!(names, expected.iter().map(String::as_str).collect());
    assert!(expected.len() > 30);
}

#[test]
fn metrics_of_a_status_with_a_user_are_for_those_with_the_password() {
    let openssl = run(Command::new("openssl").args(["passwd", "-6", "a password"])).succeeded().text();
    let args = ["--status", "127.0.0.1:0", "--status-user", &format!("prometheus:{openssl}")];
    let end = End::initiator(&Key::new(), "127.0.0.1:9").args(&args).start();
    let server = Server::Tcp(Status::of(&end.process).0);
    // "prometheus:a password" and "prometheus:another" in Base64.
    let get = |credentials| server.request("GET", "/metrics", &[("Authorization", credentials)], "");
    assert_eq!(server.get("/metrics").status, 401);
    assert_eq!(get("Basic cHJvbWV0aGV1czphbm90aGVy").status, 401);
    let response = get("Basic cHJvbWV0aGV1czphIHBhc3N3b3Jk");
    assert_eq!(response.status, 200);
    check_with_promtool(&response.body);
}
