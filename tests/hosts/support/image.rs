//! Images of Debian systems to boot. Each is made once and kept under `target/hosts`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};

use super::run_locally;

/// A Debian release, and the packages that are installed in it.
#[derive(Clone, Copy)]
pub(crate) struct Image {
    pub(crate) suite: &'static str,
    pub(crate) packages: &'static [&'static str],
    /// A package of the release that is not installed, but lies in `/srv`.
    pub(crate) archived: &'static str,
}

/// The mirror to use on machines whose own packages come from elsewhere.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

impl Image {
    /// The tree of this image, which is made if it does not exist yet. Hosts do not write to it: each has its own
    /// layer.
    pub(crate) fn tree(self) -> PathBuf {
        let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/hosts");
        fs::create_dir_all(&cache).expect("target/hosts can be created");
        // The name includes the packages, so that another list makes another image.
        let packages = self.packages.join("+");
        let tree = cache.join(format!("{}+{packages}-{}", self.suite, self.archived));
        let lock =
            File::create(cache.join(format!("{}.lock", self.suite))).expect("target/hosts can be written to");
        flock(&lock, FlockOperation::LockExclusive).expect("the file can be locked");
        if !tree.exists() {
            let unfinished = cache.join(format!("{}.unfinished", self.suite));
            run_locally("rm", [OsStr::new("-rf"), unfinished.as_ref()]);
            self.bootstrap(&unfinished);
            // Only a complete tree gets the final name.
            fs::rename(&unfinished, &tree).expect("the tree can be renamed");
        }
        tree
    }

    fn bootstrap(self, to: &Path) {
        println!("making a Debian {} at {}", self.suite, to.display());
        let packages = format!("--include={},{}", self.packages.join(","), self.archived);
        run_locally(
            "debootstrap",
            [
                OsStr::new("--variant=minbase"),
                packages.as_ref(),
                self.suite.as_ref(),
                to.as_ref(),
                mirror().as_ref(),
            ],
        );
        let archived = format!(
            "mv /var/cache/apt/archives/{package}_*.deb /srv/{package}.deb; dpkg --purge {package}",
            package = self.archived
        );
        run_locally("chroot", [to.as_ref(), OsStr::new("sh"), "-euc".as_ref(), archived.as_ref()]);
        run_locally(
            "rm",
            [OsStr::new("-rf"), to.join("var/cache/apt").as_ref(), to.join("var/lib/apt/lists").as_ref()],
        );
    }
}

/// The mirror of this machine's own packages, if it runs Debian.
fn mirror() -> String {
    let listed = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)", "Identifier: Packages"])
        .output();
    let listed =
        listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let debian = listed.lines().map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"));
    debian.unwrap_or(DEFAULT_MIRROR).to_owned()
}
