//! The packet filter rules of Kiln's networks, as a value.
//!
//! Kiln owns one table and writes it as a whole; it never touches another table, and sets no policy. What the rules
//! promise: containers reach the outside under the host's address, containers of one network reach each other, and
//! nobody else reaches a container unless it asked first. Rules of other tables still apply: a host whose firewall
//! drops forwarded packets must let the bridge pass.

use super::address::Ipv4Subnet;
use crate::sys::netlink_nft::{Chain, Hook, Match, Rule, Table, Verdict};

/// Returns the table for one bridge.
pub(super) fn table(name: &str, bridge: &str, subnet: Ipv4Subnet) -> Table {
    let to_bridge = || Match::OutputIs(bridge.to_owned());
    let from_bridge = || Match::InputIs(bridge.to_owned());
    let from_subnet = || Match::SourceIn(subnet.base(), subnet.prefix_len());
    let rule = |matches, verdict| Rule { matches, verdict };
    Table {
        name: name.to_owned(),
        chains: vec![
            Chain {
                hook: Hook::Forward,
                rules: vec![
                    // Frames between ports come by here when br_netfilter is loaded.
                    rule(vec![to_bridge(), from_bridge()], Verdict::Accept),
                    rule(vec![to_bridge(), Match::Established], Verdict::Accept),
                    rule(vec![to_bridge()], Verdict::Drop),
                ],
            },
            Chain {
                hook: Hook::Postrouting,
                rules: vec![rule(vec![from_subnet(), Match::OutputIsNot(bridge.to_owned())], Verdict::Masquerade)],
            },
        ],
    }
}

/// Says in words, with the remedy, that a table of the host's own firewall keeps the bridge's packets from being
/// forwarded.
pub(super) fn obstacle(table: &str, bridge: &str) -> String {
    let remedy = match table {
        "ip filter" => format!(
            "iptables -I FORWARD -i {bridge} -j ACCEPT; iptables -I FORWARD -o {bridge} -m conntrack --ctstate \
             RELATED,ESTABLISHED -j ACCEPT (with Docker on the host use the chain DOCKER-USER instead of FORWARD, which \
             Docker keeps)"
        ),
        _ => format!("add rules to it that accept what comes from {bridge}, and established connections to {bridge}"),
    };
    format!(
        "this host's firewall (table `{table}`) drops forwarded packets and does not mention {bridge}: containers will not \
         reach the outside; to let them: {remedy}"
    )
}
