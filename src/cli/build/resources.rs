//! What RUN steps may use: `--resource`, and the hidden options that docker's legacy builder had for the same.

use clap::Args;

use crate::cli::value;
use crate::error::{Error, Result, ResultExt as _};
use kiln_graph::diagnostic::closest;

/// Limits of RUN steps.
#[derive(Debug, Default, Args)]
pub(super) struct ResourceArgs {
    /// Limits of each RUN step: memory=512m, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus, cpuset-mems
    #[arg(long = "resource", value_name = "KEY=VALUE,..")]
    resources: Vec<String>,
    /// Memory of each RUN step
    #[arg(short, long, hide = true, value_name = "SIZE")]
    memory: Option<String>,
    /// Memory and swap of each RUN step, -1 for unlimited swap
    #[arg(long, hide = true, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Share of processor time of each RUN step
    #[arg(short, long, hide = true, value_name = "SHARES")]
    cpu_shares: Option<String>,
    /// Period of the processor quota in microseconds
    #[arg(long, hide = true, value_name = "MICROSECONDS")]
    cpu_period: Option<String>,
    /// Processor time of each RUN step in each period, in microseconds
    #[arg(long, hide = true, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<String>,
    /// Processors of each RUN step
    #[arg(long, hide = true, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes of each RUN step
    #[arg(long, hide = true, value_name = "LIST")]
    cpuset_mems: Option<String>,
}

/// Each key, and the attribute that BuildKit's frontend knows.
const KEYS: [(&str, &str); 7] = [
    ("memory", "memory"),
    ("memory-swap", "memswap"),
    ("cpu-shares", "cpushares"),
    ("cpu-period", "cpuperiod"),
    ("cpu-quota", "cpuquota"),
    ("cpuset-cpus", "cpusetcpus"),
    ("cpuset-mems", "cpusetmems"),
];

impl ResourceArgs {
    /// Returns the frontend's attributes.
    ///
    /// # Errors
    /// `InvalidArgument` naming the option or the key.
    pub(super) fn attributes(&self) -> Result<Vec<(&'static str, String)>> {
        let mut attributes = Vec::new();
        let own = [
            &self.memory,
            &self.memory_swap,
            &self.cpu_shares,
            &self.cpu_period,
            &self.cpu_quota,
            &self.cpuset_cpus,
            &self.cpuset_mems,
        ];
        for ((key, _), value) in KEYS.iter().zip(own) {
            if let Some(value) = value {
                attributes.push(attribute(key, value).context(|| format!("--{key} {value}"))?);
            }
        }
        for resource in &self.resources {
            let doing = || format!("--resource {resource}");
            for (key, value) in value::csv(resource).context(doing)? {
                let value = value.ok_or_else(|| Error::invalid(format!("{key} needs a value"))).context(doing)?;
                attributes.push(attribute(&key, &value).context(doing)?);
            }
        }
        Ok(attributes)
    }
}

fn attribute(key: &str, value: &str) -> Result<(&'static str, String)> {
    let known = KEYS.iter().find(|(name, _)| *name == key);
    let unknown = || {
        let names = KEYS.map(|(name, _)| name);
        let near = closest(key, names).map(|near| format!(" (did you mean {near}?)"));
        Error::invalid(format!("no limit is called {key}{}: there are {}", near.unwrap_or_default(), names.join(", ")))
    };
    let (_, attribute) = known.ok_or_else(unknown)?;
    let value = match key {
        "memory-swap" | "cpu-quota" if value == "-1" => value.to_owned(),
        "memory" | "memory-swap" => value::bytes(value)?.to_string(),
        "cpuset-cpus" | "cpuset-mems" => value.to_owned(),
        _ => value.parse::<u64>().map_err(|_| Error::invalid(format!("{value:?} is not a number")))?.to_string(),
    };
    Ok((attribute, value))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: ResourceArgs,
    }

    fn attributes(args: &[&str]) -> Result<Vec<(&'static str, String)>> {
        Command::try_parse_from(["build"].iter().chain(args)).unwrap().args.attributes()
    }

    #[test]
    fn limits_become_the_attributes_that_buildkit_knows() {
        let made = attributes(&["--resource=memory=1g,cpu-quota=50000", "-m", "64m", "--memory-swap=-1", "-c", "512"]);
        let expected = [("memory", "67108864"), ("memswap", "-1"), ("cpushares", "512"), ("memory", "1073741824")];
        let expected = expected.into_iter().chain([("cpuquota", "50000")]);
        assert_eq!(made.unwrap(), expected.map(|(key, value)| (key, value.to_owned())).collect::<Vec<_>>());
        assert_eq!(attributes(&["--cpuset-cpus=0-1"]).unwrap(), [("cpusetcpus", "0-1".to_owned())]);
    }

    #[test]
    fn limits_that_make_no_sense_are_refused_by_name() {
        for (args, words) in [
            (&["--resource=memroy=1"][..], "did you mean memory?"),
            (&["--resource=memory"], "memory needs a value"),
            (&["--memory=lots"], "--memory lots"),
            (&["--cpu-shares=x"], "--cpu-shares x"),
        ] {
            let error = attributes(args).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
