//! `version` and `info`.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value as Json, json};

use crate::cli::args::Context;
use crate::cli::format::{object, size};
use crate::cli::print;
use crate::client::newest_api;
use crate::error::Result;

/// Arguments of `version` and `info`.
#[derive(Debug, Args)]
pub(in crate::cli) struct FormatArgs {
    /// `json` or a Go template
    #[arg(short, long)]
    format: Option<String>,
}

/// `version`: of the command, and of the engine it speaks to.
pub(super) async fn version(context: &Context, args: &FormatArgs) -> Result<ExitCode> {
    let client = client(context);
    let server: Result<Json> = context.client.get("/version").await;
    let both = json!({ "Client": client, "Server": server.as_ref().ok() });
    let text = match &args.format {
        Some(format) => object(&both, format)?,
        None => version_text(&both),
    };
    print(&text)?;
    server.map(|_| ExitCode::SUCCESS)
}

fn client(context: &Context) -> Json {
    let platform = kiln_graph::Platform::host();
    let newest = newest_api();
    json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": newest,
        "DefaultAPIVersion": newest,
        "Os": platform.os,
        "Arch": platform.architecture,
        "Context": context.client.endpoint().to_string(),
    })
}

fn version_text(both: &Json) -> String {
    let mut out = String::new();
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let client = &both["Client"];
    let _ = write!(
        out,
        "Client: Kiln\n Version:           {}\n API version:       {}\n OS/Arch:           {}/{}\n Engine:            {}\n",
        text(&client["Version"]),
        text(&client["ApiVersion"]),
        text(&client["Os"]),
        text(&client["Arch"]),
        text(&client["Context"]),
    );
    let server = &both["Server"];
    if server.is_null() {
        return out;
    }
    let name = match text(&server["Platform"]["Name"]) {
        name if name.is_empty() => String::new(),
        name => format!(" {name}"),
    };
    let _ = writeln!(out, "\nServer:{name}");
    for component in server["Components"].as_array().into_iter().flatten() {
        let details = &component["Details"];
        let _ = writeln!(out, " {}:", text(&component["Name"]));
        let _ = writeln!(out, "  Version:          {}", text(&component["Version"]));
        let api = text(&details["ApiVersion"]);
        if !api.is_empty() {
            let oldest = text(&details["MinAPIVersion"]);
            let _ = writeln!(out, "  API version:      {api} (minimum version {oldest})");
            let _ = writeln!(out, "  OS/Arch:          {}/{}", text(&details["Os"]), text(&details["Arch"]));
        }
    }
    out
}

/// `info`: the engine, its host, and how it is reached.
pub(super) async fn info(context: &Context, args: &FormatArgs) -> Result<ExitCode> {
    let mut info: Json = context.client.get("/info").await?;
    let warnings: Vec<String> = info["Warnings"].as_array().into_iter().flatten().map(words).collect();
    let text = match &args.format {
        Some(format) => {
            info["ClientInfo"] = client(context);
            object(&info, format)?
        }
        None => info_text(&info, context),
    };
    print(&text)?;
    if args.format.is_none() {
        warnings.iter().for_each(|warning| anstream::eprintln!("{warning}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn words(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn info_text(info: &Json, context: &Context) -> String {
    let mut out = format!(
        "Client:\n Version:    {}\n Engine:     {}\n\nServer:\n",
        env!("CARGO_PKG_VERSION"),
        context.client.endpoint()
    );
    let mut line = |indent: usize, name: &str, value: String| {
        let _ = writeln!(out, "{:indent$}{name}: {value}", "");
    };
    line(1, "Containers", words(&info["Containers"]));
    line(2, "Running", words(&info["ContainersRunning"]));
    line(2, "Paused", words(&info["ContainersPaused"]));
    line(2, "Stopped", words(&info["ContainersStopped"]));
    line(1, "Images", words(&info["Images"]));
    line(1, "Server Version", words(&info["ServerVersion"]));
    line(1, "Storage Driver", words(&info["Driver"]));
    for pair in info["DriverStatus"].as_array().into_iter().flatten() {
        line(2, &words(&pair[0]), words(&pair[1]));
    }
    line(1, "Logging Driver", words(&info["LoggingDriver"]));
    line(1, "Cgroup Driver", words(&info["CgroupDriver"]));
    line(1, "Cgroup Version", words(&info["CgroupVersion"]));
    let list = |value: &Json| value.as_array().into_iter().flatten().map(words).collect::<Vec<_>>().join(" ");
    line(1, "Plugins", String::new());
    for kind in ["Volume", "Network", "Log"] {
        line(2, kind, list(&info["Plugins"][kind]));
    }
    let runtimes = info["Runtimes"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    line(1, "Runtimes", runtimes.collect::<Vec<_>>().join(" "));
    line(1, "Default Runtime", words(&info["DefaultRuntime"]));
    line(1, "Security Options", String::new());
    for option in info["SecurityOptions"].as_array().into_iter().flatten().map(words) {
        for (number, part) in option.split(',').enumerate() {
            let (name, value) = part.split_once('=').unwrap_or(("name", part));
            match (number, name) {
                (0, "name") => line(2, value, String::new()),
                (_, "profile") => line(3, "Profile", value.to_owned()),
                _ => line(3, name, value.to_owned()),
            }
        }
    }
    line(1, "Kernel Version", words(&info["KernelVersion"]));
    line(1, "Operating System", words(&info["OperatingSystem"]));
    line(1, "OSType", words(&info["OSType"]));
    line(1, "Architecture", words(&info["Architecture"]));
    line(1, "CPUs", words(&info["NCPU"]));
    line(1, "Total Memory", size::binary(info["MemTotal"].as_u64().unwrap_or(0)));
    line(1, "Name", words(&info["Name"]));
    line(1, "ID", words(&info["ID"]));
    line(1, "Root Dir", words(&info["DockerRootDir"]));
    let mirrors = list(&info["RegistryConfig"]["Mirrors"]);
    if !mirrors.is_empty() {
        line(1, "Registry Mirrors", mirrors);
    }
    line(1, "Insecure Registries", list(&info["RegistryConfig"]["InsecureRegistryCIDRs"]));
    out.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}
