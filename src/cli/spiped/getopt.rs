//! Options as spiped reads them: letters, which may stand together (`-DFj`), values behind them or as the next argument (`-n100`),
//! whole words (`--syslog`), `--` at the end, and each once. What clap reads besides, such as `--max=1` or `--help`, is a mistake
//! here.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// The options of a program.
pub(super) struct Syntax {
    /// Letters without a value.
    pub(super) flags: &'static str,
    /// Letters with one.
    pub(super) values: &'static str,
    /// Words without a value, with both dashes.
    pub(super) words: &'static [&'static str],
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// `-v`, whatever comes behind it.
    Version,
    /// What the options say.
    Run(Given),
}

/// The options that are there, by what they are written as (`-s`), with their values, which are empty for flags.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Given(BTreeMap<String, String>);

/// What is wrong with a command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mistake {
    /// How the options are used: how to use them is to be said, after this, if there is more to say.
    Usage(Option<String>),
    /// The value of an option.
    Value(String),
}

impl Given {
    pub(super) fn has(&self, option: &str) -> bool {
        self.0.contains_key(option)
    }

    pub(super) fn value(&self, option: &str) -> Option<&str> {
        self.0.get(option).map(String::as_str)
    }

    fn add(&mut self, option: String, value: String) -> Result<(), Mistake> {
        match self.0.insert(option, value) {
            None => Ok(()),
            Some(_) => Err(Mistake::Usage(None)),
        }
    }
}

/// Reads `arguments`, without the program's name.
///
/// # Errors
/// The first [`Mistake`].
pub(super) fn read(syntax: &Syntax, arguments: impl IntoIterator<Item = OsString>) -> Result<Asked, Mistake> {
    let mut arguments = arguments.into_iter().map(|argument| {
        argument
            .into_string()
            .map_err(|argument| Mistake::Value(format!("{} is not UTF-8", argument.display())))
    });
    let mut given = Given::default();
    while let Some(argument) = arguments.next().transpose()? {
        match argument.strip_prefix('-') {
            // All options are before it.
            Some("-") => break,
            Some("") | None => return Err(Mistake::Usage(None)),
            Some(word) if word.starts_with('-') => {
                if !syntax.words.contains(&&*argument) {
                    return Err(illegal(&argument));
                }
                given.add(argument, String::new())?;
                continue;
            }
            Some(_) => {}
        }
        let mut letters = argument.chars();
        letters.next();
        while let Some(letter) = letters.next() {
            let option = format!("-{letter}");
            if letter == 'v' {
                return Ok(Asked::Version);
            } else if syntax.flags.contains(letter) {
                given.add(option, String::new())?;
            } else if syntax.values.contains(letter) {
                let value = match letters.as_str() {
                    "" => arguments.next().transpose()?,
                    attached => Some(attached.to_owned()),
                };
                let Some(value) = value else {
                    return Err(Mistake::Usage(Some(format!("missing argument to {option}"))));
                };
                given.add(option, value)?;
                break;
            } else {
                return Err(illegal(&option));
            }
        }
    }
    match arguments.next() {
        None => Ok(Asked::Run(given)),
        Some(_) => Err(Mistake::Usage(None)),
    }
}

fn illegal(option: &str) -> Mistake {
    Mistake::Usage(Some(format!("illegal option -- {option}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNTAX: Syntax = Syntax { flags: "DF", values: "ns", words: &["--syslog"] };

    fn asked(arguments: &[&str]) -> Result<Asked, Mistake> {
        read(&SYNTAX, arguments.iter().map(OsString::from))
    }

    fn given(options: &[(&str, &str)]) -> Asked {
        let options = options.iter().map(|(option, value)| ((*option).to_owned(), (*value).to_owned()));
        Asked::Run(Given(options.collect()))
    }

    #[test]
    fn letters_may_stand_together_and_values_behind_them() {
        let expected = given(&[("-D", ""), ("-F", ""), ("-n", "100"), ("--syslog", "")]);
        for arguments in [
            &["-DFn100", "--syslog"][..],
            &["--syslog", "-D", "-F", "-n", "100"],
            &["-DFn", "100", "--syslog", "--"],
        ] {
            assert_eq!(asked(arguments).as_ref(), Ok(&expected), "{arguments:?}");
        }
    }

    #[test]
    fn a_value_may_begin_with_a_dash() {
        assert_eq!(asked(&["-n", "-1", "-s", "--"]), Ok(given(&[("-n", "-1"), ("-s", "--")])));
    }

    #[test]
    fn the_version_is_asked_for_before_a_mistake_and_not_behind_one() {
        assert_eq!(asked(&["-Dv", "-z"]), Ok(Asked::Version));
        assert_eq!(asked(&["-z", "-v"]), Err(illegal("-z")));
    }

    #[test]
    fn mistakes_name_what_is_wrong_where_that_is_an_option() {
        let usage = |text: Option<&str>| Err(Mistake::Usage(text.map(ToOwned::to_owned)));
        for (arguments, said) in [
            (&["-z"][..], Some("illegal option -- -z")),
            (&["-Dz"], Some("illegal option -- -z")),
            (&["--help"], Some("illegal option -- --help")),
            (&["--syslog=1"], Some("illegal option -- --syslog=1")),
            (&["-Fs"], Some("missing argument to -s")),
            (&["-D", "-D"], None),
            (&["-DD"], None),
            (&["-n1", "-n1"], None),
            (&["--syslog", "--syslog"], None),
            (&["operand"], None),
            (&["-D", "-"], None),
            (&["--", "-D"], None),
        ] {
            assert_eq!(asked(arguments), usage(said), "{arguments:?}");
        }
    }
}
