//! How a container is connected and what it is called.

use std::collections::{BTreeSet, HashMap};

use clap::Args;

use super::port::{self, Published};
use crate::cli::value;
use crate::error::{Error, Result};
use crate::types::{EndpointIpamConfig, EndpointSettings, HostConfig, NetworkingConfig, PortMap};

#[derive(Debug, Args)]
pub(super) struct NetworkOptions {
    /// Network: bridge, host, none, or one the engine has
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Vec<String>,
    /// Name of the container in its network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// IPv4 address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<std::net::Ipv4Addr>,
    /// IPv6 address
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<std::net::Ipv6Addr>,
    /// MAC address
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<String>,
    /// Make another container known by a name
    #[arg(long, value_name = "CONTAINER[:NAME]")]
    link: Vec<String>,
    /// Host name
    #[arg(short = 'h', long)]
    pub(super) hostname: Option<String>,
    /// NIS domain name
    #[arg(long)]
    pub(super) domainname: Option<String>,
    /// Add a line to /etc/hosts: name:address
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Name server
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Resolver option
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Publish a port
    #[arg(short, long, value_name = "[[IP:]HOST:]CONTAINER[/PROTOCOL]")]
    publish: Vec<String>,
    /// Publish all exposed ports
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Say that a port is served
    #[arg(long, value_name = "PORT[-PORT][/PROTOCOL]")]
    expose: Vec<String>,
}

impl NetworkOptions {
    pub(super) fn apply(&self, host: &mut HostConfig) -> Result<()> {
        host.network_mode = Some(self.name()?);
        host.extra_hosts = Some(extra_hosts(&self.add_host)?);
        host.dns = Some(self.dns.clone());
        host.dns_search = Some(self.dns_search.clone());
        host.dns_options = Some(self.dns_option.clone());
        host.links = (!self.link.is_empty()).then(|| self.link.clone());
        host.publish_all_ports = Some(self.publish_all);
        let mut ports = PortMap::new();
        for Published { port, binding } in self.published()? {
            ports.entry(port).or_default().get_or_insert_default().push(binding);
        }
        host.port_bindings = Some(ports);
        Ok(())
    }

    /// Ports that are served, published or not.
    pub(super) fn exposed_ports(&self) -> Result<Vec<String>> {
        let mut ports = BTreeSet::new();
        for text in &self.expose {
            ports.extend(port::exposed(text)?);
        }
        ports.extend(self.published()?.into_iter().map(|published| published.port));
        Ok(ports.into_iter().collect())
    }

    fn published(&self) -> Result<Vec<Published>> {
        let mut published = Vec::new();
        for text in &self.publish {
            published.extend(port::published(text)?);
        }
        Ok(published)
    }

    fn name(&self) -> Result<String> {
        Ok(match self.network.first() {
            Some(text) => endpoint(text)?.0,
            None => "default".to_owned(),
        })
    }

    /// Endpoints with settings of their own; the options without a network's name concern the first network.
    pub(super) fn endpoints(&self) -> Result<Option<NetworkingConfig>> {
        let mut endpoints = HashMap::new();
        for text in &self.network {
            let (name, settings) = endpoint(text)?;
            endpoints.insert(name, settings);
        }
        let first = endpoints.entry(self.name()?).or_default();
        if !self.network_alias.is_empty() {
            first.aliases.get_or_insert_default().extend(self.network_alias.iter().cloned());
        }
        if self.ip.is_some() || self.ip6.is_some() {
            let addresses = addresses(first);
            addresses.ipv4_address = self.ip.map(|address| address.to_string());
            addresses.ipv6_address = self.ip6.map(|address| address.to_string());
        }
        first.mac_address = self.mac_address.clone().or(first.mac_address.take());
        let plain = endpoints.len() == 1 && endpoints.values().all(|settings| *settings == EndpointSettings::default());
        Ok((!plain).then_some(NetworkingConfig { endpoints_config: Some(endpoints) }))
    }
}

/// Reads a network's name, or `name=..,alias=..,ip=..,ip6=..,mac-address=..,gw-priority=..,driver-opt=key=value`.
fn endpoint(text: &str) -> Result<(String, EndpointSettings)> {
    if !text.contains('=') {
        return Ok((text.to_owned(), EndpointSettings::default()));
    }
    let invalid = |why: String| Error::invalid(format!("invalid argument {text:?} for --network: {why}"));
    let (mut name, mut settings) = (None, EndpointSettings::default());
    for (key, given) in value::csv(text)? {
        let given = given.ok_or_else(|| invalid(format!("{key} needs a value")))?;
        match key.to_lowercase().as_str() {
            "name" => name = Some(given),
            "alias" => settings.aliases.get_or_insert_default().push(given),
            "ip" => addresses(&mut settings).ipv4_address = Some(given),
            "ip6" => addresses(&mut settings).ipv6_address = Some(given),
            "link-local-ip" => addresses(&mut settings).link_local_ips.get_or_insert_default().push(given),
            "mac-address" => settings.mac_address = Some(given),
            "gw-priority" => {
                let priority = given.parse().map_err(|_| invalid("gw-priority is a number".to_owned()))?;
                settings.gw_priority = Some(priority);
            }
            "driver-opt" => {
                let (key, value) = given.split_once('=').unwrap_or((&given, ""));
                settings.driver_opts.get_or_insert_default().insert(key.to_owned(), value.to_owned());
            }
            other => return Err(invalid(format!("unknown key {other}"))),
        }
    }
    Ok((name.ok_or_else(|| invalid("name is required".to_owned()))?, settings))
}

fn addresses(settings: &mut EndpointSettings) -> &mut EndpointIpamConfig {
    settings.ipam_config.get_or_insert_default()
}

fn extra_hosts(entries: &[String]) -> Result<Vec<String>> {
    let convert = |entry: &String| match entry.split_once(['=', ':']) {
        Some((name, address)) if !name.is_empty() && !address.is_empty() => {
            let address = address.trim_start_matches('[').trim_end_matches(']');
            Ok(format!("{name}:{address}"))
        }
        _ => Err(Error::invalid(format!("invalid --add-host {entry:?}: expected name:address"))),
    };
    entries.iter().map(convert).collect()
}
