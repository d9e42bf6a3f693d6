//! One nftables table as a value: written to the kernel in one transaction, compared with what is there, deleted.
//!
//! Tables are of the `inet` family, so one holds rules for IPv4 and IPv6. Only the expressions Kiln's rules need exist
//! here; rules of others are looked at, never changed. No sets, no maps.

use std::ffi::{CStr, CString};
use std::net::Ipv4Addr;

use netlink_bindings::nftables::{
    self as nft, BitwiseOps, CmpOps, CtKeys, MetaKeys, Nfgenmsg, PayloadBase, PushExprListAttrs, VerdictCode,
};
use netlink_bindings::traits::Pusher;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sha2::{Digest as _, Sha256};

use super::netlink::{Netlink, present};
use crate::error::{Error, Kind, Result, ResultExt as _};

/// A table: everything the kernel holds under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The name.
    pub name: String,
    /// The chains.
    pub chains: Vec<Chain>,
}

/// A chain attached to a hook. Packets no rule decides about pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Where it sees packets; also names it.
    pub hook: Hook,
    /// The rules, in order.
    pub rules: Vec<Rule>,
}

/// Where a chain sees packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets routed through this host.
    Forward,
    /// Packets about to leave, the first of each connection: where source addresses are rewritten.
    Postrouting,
}

/// A rule: when everything matches, the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The conditions.
    pub matches: Vec<Match>,
    /// What happens then.
    pub verdict: Verdict,
}

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// It came in by this interface.
    InputIs(String),
    /// It leaves by this interface.
    OutputIs(String),
    /// It leaves by another interface.
    OutputIsNot(String),
    /// Its IPv4 source address has this prefix.
    SourceIn(Ipv4Addr, u8),
    /// It belongs or relates to a connection that was let through before.
    Established,
}

/// What happens with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes this table; others may still drop it.
    Accept,
    /// It is dropped.
    Drop,
    /// Its source address becomes that of the interface it leaves by.
    Masquerade,
}

impl Hook {
    fn chain(self) -> &'static CStr {
        match self {
            Self::Forward => c"forward",
            Self::Postrouting => c"postrouting",
        }
    }

    /// The hook's number (`NF_INET_*`), nft's usual priority there (`filter`, `srcnat`) and the chain type.
    fn attachment(self) -> (u32, i32, &'static CStr) {
        match self {
            Self::Forward => (FORWARD, 0, c"filter"),
            Self::Postrouting => (4, 100, c"nat"),
        }
    }
}

/// `NFPROTO_*` and `NF_INET_FORWARD` (linux/netfilter.h), `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h).
const INET: u8 = 1;
const IPV4: u8 = 2;
const ANY_FAMILY: u8 = 0;
const FORWARD: u32 = 2;
const SUBSYSTEM: u16 = 10;
/// The register expressions hand values on in (`NFT_REG_1`), and the one verdicts are written to.
const VALUE: u32 = 1;
const VERDICT: u32 = 0;
/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)` and `NF_CT_STATE_BIT(IP_CT_RELATED)`.
const ESTABLISHED_OR_RELATED: u32 = 2 | 4;

impl Netlink {
    /// Makes the kernel hold exactly this table under its name, in one transaction: no packet sees a state between.
    ///
    /// # Errors
    /// `Unsupported` when the kernel lacks nftables or an expression; `Forbidden` without CAP_NET_ADMIN.
    pub fn replace_table(&mut self, table: &Table) -> Result<()> {
        let (name, fingerprint) = identify(table)?;
        self.transaction(|batch| {
            // Deleting what may not exist is an error on kernels before 6.3, so it is made first.
            batch.request().set_create().op_newtable_do(&family(INET)).encode().push_name(&name);
            batch.request().op_deltable_do(&family(INET)).encode().push_name(&name);
            let new_table = batch.request().set_create().op_newtable_do(&family(INET));
            new_table.into_encoder().push_name(&name).push_userdata(&fingerprint);
            push_content(batch, table, &name)
        })
        .map_err(|error| match error.kind() {
            // An expression whose module is missing is "not found".
            Kind::NotFound | Kind::Unsupported => error.with_kind(Kind::Unsupported).context(LACKING),
            _ => error,
        })
        .context(|| format!("write the packet filter table {}", table.name))
    }

    /// Says whether the kernel holds exactly this table, as [`Self::replace_table`] wrote it.
    ///
    /// Sees that the table or rules were deleted or added, and that another version of Kiln wrote it; not that somebody
    /// replaced a rule by another.
    ///
    /// # Errors
    /// `Unsupported` when the kernel lacks nftables.
    pub fn table_is(&mut self, table: &Table) -> Result<bool> {
        let (name, fingerprint) = identify(table)?;
        let mut request = nft::Request::new().op_gettable_do(&family(INET));
        request.encode().push_name(&name);
        let mut reply = self.socket.request(&request).map_err(no_socket)?;
        let same = present(reply.recv_one())?.is_some_and(|(_, found)| {
            found.get_userdata().is_ok_and(|data| data == fingerprint)
                && found.get_use().is_ok_and(|chains| chains as usize == table.chains.len())
        });
        for chain in table.chains.iter().filter(|_| same) {
            if self.rule_count(&name, chain.hook)? != Some(chain.rules.len()) {
                return Ok(false);
            }
        }
        Ok(same)
    }

    fn rule_count(&mut self, table: &CStr, hook: Hook) -> Result<Option<usize>> {
        let mut request = nft::Request::new().op_getchain_do(&family(INET));
        request.encode().push_table(table).push_name(hook.chain());
        let mut reply = self.socket.request(&request)?;
        Ok(present(reply.recv_one())?.and_then(|(_, chain)| chain.get_use().ok()).map(|rules| rules as usize))
    }

    /// Deletes a table with all it holds; says whether there was one.
    ///
    /// # Errors
    /// `Forbidden` without CAP_NET_ADMIN.
    pub fn delete_table(&mut self, name: &str) -> Result<bool> {
        let name = c_table(name)?;
        let deleted = self.transaction(|batch| {
            batch.request().op_deltable_do(&family(INET)).encode().push_name(&name);
            Ok(())
        });
        Ok(present(deleted)?.is_some())
    }

    /// Returns the tables ("ip filter") that drop forwarded packets unless a rule lets them pass, and hold no rule that
    /// mentions `interface`. Finds what `nft` and `iptables-nft` wrote.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tables_that_drop_forwarded(&mut self, interface: &str) -> Result<Vec<String>> {
        let request = nft::Request::new().op_getchain_dump(&family(ANY_FAMILY));
        let mut tables = self.dump(&request, |(header, chain)| {
            let hook = chain.get_hook().ok()?.get_num().ok()?;
            let drops = chain.get_policy().ok()? == VerdictCode::Drop as u32;
            let table = chain.get_table().ok()?.to_owned();
            let seen = matches!(header.nfgen_family, INET | IPV4) && hook == FORWARD && drops;
            seen.then_some((header.nfgen_family, table))
        })?;
        tables.dedup();
        let mut dropping = Vec::new();
        for (kind, name) in tables {
            let mut request = nft::Request::new().op_getrule_dump(&family(kind));
            request.encode().push_table(&name);
            let needle = interface.as_bytes();
            // A rule holds the name as it is, whatever expression or iptables match compares it.
            let mentions = self.dump(&request, |(_, rule)| {
                rule.get_buf().windows(needle.len()).any(|window| window == needle).then_some(())
            })?;
            if mentions.is_empty() {
                let kind = if kind == INET { "inet" } else { "ip" };
                dropping.push(format!("{kind} {}", name.to_string_lossy()));
            }
        }
        Ok(dropping)
    }

    /// Sends messages that take effect together or not at all.
    fn transaction(&mut self, messages: impl FnOnce(&mut nft::Chained<'static>) -> Result<()>) -> Result<()> {
        let mut batch = nft::Chained::new(self.socket.reserve_seq(MAX_MESSAGES));
        let mut edge = family(ANY_FAMILY);
        edge.set_res_id(SUBSYSTEM);
        batch.request().op_batch_begin_do(&edge);
        messages(&mut batch)?;
        batch.request().op_batch_end_do(&edge);
        Ok(self.socket.request_chained(&batch.finalize())?.recv_all()?)
    }
}

/// What a kernel must have.
const LACKING: &str = "the kernel lacks a part of nftables (NF_TABLES_INET, NFT_CT, NFT_NAT and NFT_MASQ are needed); \
                       use another kernel, or --network=host or none";

/// Explains why a netfilter socket cannot be had. netlink-socket2 0.3 calls every reason EPERM, so the kernel is asked
/// again.
fn no_socket(error: std::io::Error) -> Error {
    let again = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(rustix::net::netlink::NETFILTER),
    );
    match again {
        Err(errno @ (Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT)) => {
            Error::from(errno).with_kind(Kind::Unsupported).context(LACKING)
        }
        _ => error.into(),
    }
}

/// More than a transaction ever holds, so that sequence numbers of two transactions do not meet.
const MAX_MESSAGES: u32 = 1 << 16;

fn family(family: u8) -> Nfgenmsg {
    Nfgenmsg { nfgen_family: family, ..Default::default() }
}

fn c_table(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::invalid(format!("invalid table name {name:?}")))
}

/// Returns the table's name for the kernel, and a fingerprint of what it holds, which is stored with it as user data.
fn identify(table: &Table) -> Result<(CString, [u8; 16])> {
    let name = c_table(&table.name)?;
    let mut content = nft::Chained::new(0);
    push_content(&mut content, table, &name)?;
    let hash: [u8; 32] = Sha256::digest(content.buf()).into();
    Ok((name, *hash.first_chunk().expect("a SHA-256 hash has 32 bytes")))
}

fn push_content(batch: &mut nft::Chained<'static>, table: &Table, name: &CStr) -> Result<()> {
    for chain in &table.chains {
        let (hook, priority, kind) = chain.hook.attachment();
        let message = batch.request().set_create().op_newchain_do(&family(INET));
        message
            .into_encoder()
            .push_table(name)
            .push_name(chain.hook.chain())
            .nested_hook()
            .push_num(hook)
            .push_priority(priority)
            .end_nested()
            .push_policy(VerdictCode::Accept as u32)
            .push_type(kind);
        for rule in &chain.rules {
            let message = batch.request().set_create().set_append().op_newrule_do(&family(INET));
            let mut expressions =
                message.into_encoder().push_table(name).push_chain(chain.hook.chain()).nested_expressions();
            for condition in &rule.matches {
                expressions = push_match(expressions, condition)?;
            }
            push_verdict(expressions, rule.verdict).end_nested();
        }
    }
    Ok(())
}

fn push_match<P: Pusher>(to: PushExprListAttrs<P>, condition: &Match) -> Result<PushExprListAttrs<P>> {
    Ok(match condition {
        Match::InputIs(name) => compare(load_meta(to, MetaKeys::Iifname), CmpOps::Eq, &padded(name)?),
        Match::OutputIs(name) => compare(load_meta(to, MetaKeys::Oifname), CmpOps::Eq, &padded(name)?),
        Match::OutputIsNot(name) => compare(load_meta(to, MetaKeys::Oifname), CmpOps::Neq, &padded(name)?),
        Match::SourceIn(base, prefix_len) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(*prefix_len)).unwrap_or(0);
            let to = compare(load_meta(to, MetaKeys::Nfproto), CmpOps::Eq, &[IPV4]);
            // The source address is at offset 12 of the IPv4 header.
            let payload = to.nested_elem().nested_data_payload().push_dreg(VALUE);
            let to = payload
                .push_base(PayloadBase::NetworkHeader as u32)
                .push_offset(12)
                .push_len(4)
                .end_nested()
                .end_nested();
            compare(and(to, mask.to_be_bytes()), CmpOps::Eq, &base.octets())
        }
        Match::Established => {
            let ct = to.nested_elem().nested_data_ct().push_dreg(VALUE).push_key(CtKeys::State as u32);
            let to = and(ct.end_nested().end_nested(), ESTABLISHED_OR_RELATED.to_ne_bytes());
            compare(to, CmpOps::Neq, &[0; 4])
        }
    })
}

fn push_verdict<P: Pusher>(to: PushExprListAttrs<P>, verdict: Verdict) -> PushExprListAttrs<P> {
    let code = match verdict {
        Verdict::Masquerade => return to.nested_elem().push_name(c"masq").end_nested(),
        Verdict::Accept => VerdictCode::Accept,
        Verdict::Drop => VerdictCode::Drop,
    };
    let immediate = to.nested_elem().nested_data_immediate().push_dreg(VERDICT);
    let data = immediate.nested_data().nested_verdict().push_code(code as u32).end_nested();
    data.end_nested().end_nested().end_nested()
}

fn load_meta<P: Pusher>(to: PushExprListAttrs<P>, key: MetaKeys) -> PushExprListAttrs<P> {
    to.nested_elem().nested_data_meta().push_dreg(VALUE).push_key(key as u32).end_nested().end_nested()
}

fn compare<P: Pusher>(to: PushExprListAttrs<P>, op: CmpOps, value: &[u8]) -> PushExprListAttrs<P> {
    let cmp = to.nested_elem().nested_data_cmp().push_sreg(VALUE).push_op(op as u32);
    cmp.nested_data().push_value(value).end_nested().end_nested().end_nested()
}

fn and<P: Pusher>(to: PushExprListAttrs<P>, mask: [u8; 4]) -> PushExprListAttrs<P> {
    let bitwise = to.nested_elem().nested_data_bitwise().push_sreg(VALUE).push_dreg(VALUE).push_len(4);
    let bitwise = bitwise.nested_mask().push_value(&mask).end_nested().nested_xor().push_value(&[0; 4]).end_nested();
    bitwise.push_op(BitwiseOps::MaskXor as u32).end_nested().end_nested()
}

/// An interface name as rules compare it: all 16 bytes, so that `kiln0` does not match `kiln01`.
fn padded(name: &str) -> Result<[u8; 16]> {
    let name = super::netlink::c_name(name)?;
    let mut bytes = [0; 16];
    bytes[..name.as_bytes().len()].copy_from_slice(name.as_bytes());
    Ok(bytes)
}
