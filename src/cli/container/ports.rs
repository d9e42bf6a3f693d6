//! Ports as `ps` shows them.

use crate::types::{PortSummary, PortSummaryTypeEnum};

/// A run of ports that are next to each other inside, and outside if they are published.
struct Run {
    address: Option<String>,
    protocol: PortSummaryTypeEnum,
    inside: (u16, u16),
    outside: Option<(u16, u16)>,
}

/// Lists ports, neighbours as ranges: those published before the others, each group ordered.
pub(super) fn describe(ports: &[PortSummary]) -> String {
    let mut ports = ports.to_vec();
    let protocol = |port: &PortSummary| port.typ.unwrap_or(PortSummaryTypeEnum::TCP);
    ports.sort_by_key(|port| {
        (port.public_port.is_none(), port.ip.clone(), protocol(port), port.private_port, port.public_port)
    });
    let mut runs = Vec::<Run>::new();
    for port in &ports {
        let address = port.ip.clone().filter(|address| !address.is_empty());
        if let Some(run) = runs.last_mut()
            && run.address == address
            && run.protocol == protocol(port)
            && run.inside.1.checked_add(1) == Some(port.private_port)
            && run.outside.map(|(_, last)| last.checked_add(1)) == port.public_port.map(Some)
        {
            run.inside.1 = port.private_port;
            run.outside = run.outside.zip(port.public_port).map(|((first, _), last)| (first, last));
            continue;
        }
        runs.push(Run {
            address,
            protocol: protocol(port),
            inside: (port.private_port, port.private_port),
            outside: port.public_port.map(|port| (port, port)),
        });
    }
    runs.iter().map(Run::describe).collect::<Vec<_>>().join(", ")
}

impl Run {
    fn describe(&self) -> String {
        let range =
            |(first, last): (u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
        let inside = format!("{}/{}", range(self.inside), self.protocol);
        match (&self.address, self.outside) {
            (Some(address), Some(outside)) if address.contains(':') => {
                format!("[{address}]:{}->{inside}", range(outside))
            }
            (Some(address), Some(outside)) => format!("{address}:{}->{inside}", range(outside)),
            (None, Some(outside)) => format!("{}->{inside}", range(outside)),
            (_, None) => inside,
        }
    }
}
