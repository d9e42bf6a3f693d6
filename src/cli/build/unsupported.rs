//! Options of docker's `build` that are not there yet: they are refused by name, with what to do instead.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Each option, and what a user can do about it.
const OPTIONS: &[(&str, &str)] = &[
    ("--builder", "there is one builder; --root or --host choose another engine"),
    ("--isolation", "it is for Windows"),
    ("--policy", "policies in Rego are not supported; EXPERIMENTAL_BUILDKIT_SOURCE_POLICY names one of rules"),
    ("--security-opt", "use --allow security.insecure"),
    ("--squash", "every step makes a layer; a last stage that copies what it needs makes few"),
];

/// Returns a hint for an error of the parser, when it is about such an option.
#[must_use]
pub(in crate::cli) fn explain(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return None };
    let name = argument.split('=').next().unwrap_or(argument);
    let (_, instead) = OPTIONS.iter().find(|(option, _)| *option == name)?;
    Some(format!("kiln build does not support {name} yet: {instead}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::build::BuildArgs;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        _args: BuildArgs,
    }

    #[test]
    fn options_that_are_not_there_are_refused_by_name() {
        for (option, instead) in OPTIONS {
            let error = Command::try_parse_from(["build", &format!("{option}=x"), "."]).unwrap_err();
            let expected = format!("kiln build does not support {option} yet: {instead}");
            assert_eq!(explain(&error), Some(expected), "{error}");
        }
        assert_eq!(explain(&Command::try_parse_from(["build", "--nonsense", "."]).unwrap_err()), None);
    }
}
