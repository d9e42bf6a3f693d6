//! How an engine finds out whether what a container serves is well.

use clap::Args;

use crate::cli::value;
use crate::error::{Error, Result, ResultExt as _};
use crate::types::HealthConfig;

#[derive(Debug, Args)]
pub(super) struct HealthOptions {
    /// Command that checks health
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between checks
    #[arg(long, value_name = "DURATION")]
    health_interval: Option<String>,
    /// Failed checks after which the container is unhealthy
    #[arg(long, value_name = "NUMBER")]
    health_retries: Option<i64>,
    /// Time to get ready in which failed checks do not count
    #[arg(long, value_name = "DURATION")]
    health_start_period: Option<String>,
    /// Time between checks while getting ready
    #[arg(long, value_name = "DURATION")]
    health_start_interval: Option<String>,
    /// Most time a check may take
    #[arg(long, value_name = "DURATION")]
    health_timeout: Option<String>,
    /// Do not check health, whatever the image says
    #[arg(long)]
    no_healthcheck: bool,
}

impl HealthOptions {
    /// Returns the check, if an option concerns it.
    pub(super) fn check(&self) -> Result<Option<HealthConfig>> {
        let time = |name: &str, text: &Option<String>| {
            let time = text.as_deref().map(|text| value::duration(text).context(|| format!("--{name}")));
            Ok::<_, Error>(time.transpose()?.map(|time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)))
        };
        let check = HealthConfig {
            test: self.health_cmd.as_ref().map(|command| vec!["CMD-SHELL".to_owned(), command.clone()]),
            interval: time("health-interval", &self.health_interval)?,
            timeout: time("health-timeout", &self.health_timeout)?,
            retries: self.health_retries,
            start_period: time("health-start-period", &self.health_start_period)?,
            start_interval: time("health-start-interval", &self.health_start_interval)?,
        };
        if self.health_retries.is_some_and(|retries| retries < 0) {
            return Err(Error::invalid("--health-retries cannot be negative"));
        }
        match (self.no_healthcheck, check == HealthConfig::default()) {
            (true, true) => Ok(Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() })),
            (true, false) => Err(Error::invalid("--no-healthcheck conflicts with --health-* options")),
            (false, true) => Ok(None),
            (false, false) => Ok(Some(check)),
        }
    }
}
