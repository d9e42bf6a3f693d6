//! `GET /containers/{id}/top`: the processes of a container in the columns of `ps -ef`, read from `/proc`; nothing is executed.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::api::Answer;
use crate::api::params::Params;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::task;

const TITLES: [&str; 8] = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];

/// `GET /containers/{id}/top`.
pub(super) async fn top(State(engine): State<Engine>, Path(id): Path<String>, params: Params) -> Answer<Json<Value>> {
    if let Some(arguments) = params.text("ps_args").filter(|arguments| *arguments != "-ef") {
        return Err(Error::unsupported(format!("ps {arguments}: only the columns of \"ps -ef\" are supported")).into());
    }
    let processes = task::blocking(move || {
        let pids = engine.containers().processes(&id)?;
        let uptime_s = uptime_s()?;
        let now_s = engine.clock().now_ns() / 1_000_000_000;
        // One that has ended meanwhile is left out.
        Ok(pids.into_iter().filter_map(|pid| describe(pid, uptime_s, now_s)).collect::<Vec<_>>())
    })
    .await?;
    Ok(Json(json!({ "Titles": TITLES, "Processes": processes })))
}

/// In `/proc`, times are counted in hundredths of a second on all architectures that matter here (`USER_HZ`).
const TICKS: u64 = 100;

fn uptime_s() -> Result<i64> {
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let seconds = uptime.split('.').next().and_then(|text| text.parse().ok());
    seconds.ok_or_else(|| Error::internal("the kernel does not say how long it runs"))
}

fn describe(pid: i32, uptime_s: i64, now_s: i64) -> Option<[String; 8]> {
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).ok();
    let stat = String::from_utf8_lossy(&read("stat")?).into_owned();
    // The name is in parentheses and may hold anything.
    let (head, tail) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok());
    let status = String::from_utf8_lossy(&read("status")?).into_owned();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.to_owned();
    let cpu_s = (number(11)? + number(12)?) / TICKS;
    let age_s = uptime_s - i64::try_from(number(19)? / TICKS).ok()?;
    let started = jiff::Timestamp::from_second(now_s - age_s).ok()?.to_zoned(jiff::tz::TimeZone::UTC);
    let share = u64::try_from(age_s).ok().filter(|age| *age > 0).map_or(0, |age| (cpu_s * 100 / age).min(99));
    let command = read("cmdline").unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let command = match command.trim_end() {
        "" => format!("[{}]", head.split_once('(')?.1),
        words => words.to_owned(),
    };
    Some([
        uid,
        pid.to_string(),
        (*fields.get(1)?).to_owned(),
        share.to_string(),
        started.strftime("%H:%M").to_string(),
        terminal(number(4)?),
        format!("{:02}:{:02}:{:02}", cpu_s / 3600, cpu_s / 60 % 60, cpu_s % 60),
        command,
    ])
}

/// The name of a terminal by its device number.
fn terminal(device: u64) -> String {
    /// The first major number of pseudo-terminals.
    const PTS: u64 = 136;
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    match major {
        PTS => format!("pts/{minor}"),
        _ => "?".to_owned(),
    }
}
