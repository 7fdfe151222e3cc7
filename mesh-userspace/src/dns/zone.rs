//! Answers to queries for names of the mesh, from what the host knows: no I/O, and nothing waits.

mod asked;
mod index;
mod reply;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{PTR, SOA, SRV},
    },
};

use super::domain::Domain;
use crate::{catalog::Instance, state::Mesh};
use asked::{Asked, address_label};
use index::{Entry, Index};
use reply::Reply;
pub use reply::Transport;

/// An address of an instance is as good as the catalog of now.
const INSTANCE_TTL: u32 = 5;
/// A virtual IP stays the service's.
const VIRTUAL_TTL: u32 = 60;
/// A service may be registered any moment.
const NEGATIVE_TTL: u32 = 2;

/// The domains whose names are the mesh's.
#[derive(Debug, Default)]
pub struct Zones {
    /// Nobody else knows names in these: one that is unknown does not exist.
    own: Vec<Domain>,
    /// Consul answers for these too, if the server that was asked leads there: what is unknown is asked of it.
    shared: Vec<Domain>,
    index: ArcSwapOption<Index>,
}

/// What becomes of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answer(Vec<u8>),
    /// None of ours: the server that the program asked is to say.
    Forward,
}

impl Zones {
    pub fn new(own: Vec<Domain>, shared: Vec<Domain>) -> Self {
        Self { own, shared, index: ArcSwapOption::empty() }
    }

    /// Returns the answer to `query` if it is for a name of the mesh. What cannot be read is for the server to judge.
    /// `shuffle` gives the keys that the instances are ordered by.
    pub fn answer(
        &self,
        query: &[u8],
        mesh: &Mesh,
        transport: Transport,
        shuffle: impl FnMut() -> u64,
    ) -> Outcome {
        let Ok(message) = Message::from_vec(query) else { return Outcome::Forward };
        let [question] = message.queries.as_slice() else { return Outcome::Forward };
        let plain = message.metadata.message_type == MessageType::Query
            && message.metadata.op_code == OpCode::Query
            && question.query_class == DNSClass::IN;
        if !plain {
            return Outcome::Forward;
        }
        match self.look_up(question, mesh, shuffle) {
            Some(reply) => reply.encode(&message, transport).map_or(Outcome::Forward, Outcome::Answer),
            None => Outcome::Forward,
        }
    }

    /// `None`: not ours to answer.
    fn look_up(&self, question: &Query, mesh: &Mesh, mut shuffle: impl FnMut() -> u64) -> Option<Reply> {
        let name = &question.name;
        let find = |domains: &[Domain]| {
            let below = |domain: &Domain| Some((domain.clone(), domain.labels_below(name)?));
            domains.iter().filter_map(below).min_by_key(|(_, labels)| labels.len())
        };
        let own = find(&self.own);
        let shared = own.is_none();
        let Some((domain, labels)) = own.or_else(|| find(&self.shared)) else {
            return self.reverse(question, mesh);
        };
        let Some(index) = self.index(mesh) else {
            // A client asks again after this, and not after "no such name".
            return (!shared).then(|| Reply::code(ResponseCode::ServFail));
        };
        let asked = Asked::read(&labels, |label| index.is_datacenter(label));
        let found = answers(&asked, question, &domain, &index, &mut shuffle);
        match found {
            // In the other domain nobody says what a bare name means.
            Some(_) if shared && matches!(asked, Asked::Nothing | Asked::VirtualPort(_)) => None,
            Some(_) if shared && matches!(&asked, Asked::Virtual(_)) && !is_virtual(&labels) => None,
            Some(mut reply) => {
                if reply.answers.is_empty() {
                    reply.authority = Some(soa(&domain));
                }
                Some(reply)
            }
            None if shared => None,
            None => {
                let mut reply = Reply::code(ResponseCode::NXDomain);
                reply.authority = Some(soa(&domain));
                Some(reply)
            }
        }
    }

    /// The name of a virtual IP.
    fn reverse(&self, question: &Query, mesh: &Mesh) -> Option<Reply> {
        if question.query_type != RecordType::PTR {
            return None;
        }
        let network = question.name.parse_arpa_name().ok()?;
        if network.prefix_len() != network.max_prefix_len() {
            return None;
        }
        let index = self.index(mesh)?;
        let service = index.service_at(network.addr())?;
        let name = below(self.own.first()?, service.as_str())?;
        let record = Record::from_rdata(question.name.clone(), VIRTUAL_TTL, RData::PTR(PTR(name)));
        Some(Reply { answers: vec![record], ..Reply::default() })
    }

    fn index(&self, mesh: &Mesh) -> Option<Arc<Index>> {
        if let Some(index) = self.index.load_full().filter(|index| index.is_of(mesh)) {
            return Some(index);
        }
        let index = Arc::new(Index::of(mesh)?);
        self.index.store(Some(index.clone()));
        Some(index)
    }
}

/// Whether the labels say that a virtual IP is meant.
fn is_virtual(labels: &[String]) -> bool {
    labels.iter().rev().take(2).any(|label| label == "virtual")
}

/// Returns what there is to answer, perhaps no record of the type that is asked for; `None`: there is no such name.
fn answers(
    asked: &Asked,
    question: &Query,
    domain: &Domain,
    index: &Index,
    shuffle: &mut impl FnMut() -> u64,
) -> Option<Reply> {
    match asked {
        Asked::Nothing => {
            let at_apex = question.query_type == RecordType::SOA && question.name == *domain.name();
            Some(Reply { answers: at_apex.then(|| soa(domain)).into_iter().collect(), ..Reply::default() })
        }
        Asked::Virtual(name) => {
            let entry = index.service(name)?;
            if entry.virtual_ips.is_empty() {
                return instances(entry, &Wanted::default(), question, domain, shuffle);
            }
            Some(addresses(question, entry.virtual_ips.iter().copied(), VIRTUAL_TTL))
        }
        Asked::VirtualPort(name) => {
            let entry = index.service(name)?;
            if entry.virtual_ips.is_empty() {
                return instances(entry, &Wanted::default(), question, domain, shuffle);
            }
            Some(virtual_ports(entry, name, question, domain))
        }
        Asked::Instances { name, tag, datacenter } => {
            let (entry, tag) = match tag {
                Some(tag) => (index.service(name)?, Some(tag.as_str())),
                None => index.tagged(name)?,
            };
            let wanted = Wanted { tag, datacenter: datacenter.as_deref() };
            instances(entry, &wanted, question, domain, shuffle)
        }
        Asked::Node { name, datacenter } => {
            let is_there = |dc: &str| datacenter.as_deref().is_none_or(|wanted| wanted == dc);
            let node = index.nodes(name).iter().find(|node| is_there(&node.datacenter))?;
            Some(addresses(question, [node.address], INSTANCE_TTL))
        }
        Asked::Address(ip) => Some(addresses(question, [*ip], INSTANCE_TTL)),
        Asked::Unknown => None,
    }
}

fn addresses(question: &Query, all: impl IntoIterator<Item = IpAddr>, ttl: u32) -> Reply {
    let records = all.into_iter().map(|ip| address(question.name.clone(), ip, ttl));
    let wanted = |kind| question.query_type == kind || question.query_type == RecordType::ANY;
    Reply { answers: records.filter(|record| wanted(record.record_type())).collect(), ..Reply::default() }
}

fn address(name: Name, ip: IpAddr, ttl: u32) -> Record {
    let data = match ip {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    };
    Record::from_rdata(name, ttl, data)
}

fn virtual_ports(entry: &Entry, name: &str, question: &Query, domain: &Domain) -> Reply {
    let mut reply = Reply::default();
    if let Some(target) = below(domain, name)
        && question.query_type == RecordType::SRV
    {
        let data = |port: &u16| RData::SRV(SRV::new(1, 1, *port, target.clone()));
        let record = |port| Record::from_rdata(question.name.clone(), INSTANCE_TTL, data(port));
        reply.answers = entry.ports.iter().map(record).collect();
        let additional = |ip: &IpAddr| address(target.clone(), *ip, VIRTUAL_TTL);
        reply.additionals = entry.virtual_ips.iter().map(additional).collect();
    }
    reply
}

/// Which of a service's instances are meant.
#[derive(Default)]
struct Wanted<'a> {
    tag: Option<&'a str>,
    datacenter: Option<&'a str>,
}

impl Wanted<'_> {
    /// As Consul compares: without case.
    fn is(&self, instance: &Instance) -> bool {
        let has = |tag: &str| instance.tags.iter().any(|own| own.eq_ignore_ascii_case(tag));
        self.tag.is_none_or(has)
            && self.datacenter.is_none_or(|dc| instance.datacenter.eq_ignore_ascii_case(dc))
    }
}

/// `None` without a healthy instance, as Consul says it.
fn instances(
    entry: &Entry,
    wanted: &Wanted<'_>,
    question: &Query,
    domain: &Domain,
    shuffle: &mut impl FnMut() -> u64,
) -> Option<Reply> {
    let mut all: Vec<&Arc<Instance>> = entry.instances.iter().filter(|i| wanted.is(i)).collect();
    if all.is_empty() {
        return None;
    }
    all.sort_by_cached_key(|_| shuffle());
    if question.query_type != RecordType::SRV {
        let mut ips: Vec<IpAddr> = Vec::with_capacity(all.len());
        for ip in all.iter().map(|instance| instance.address.ip()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        return Some(addresses(question, ips, INSTANCE_TTL));
    }
    let mut reply = Reply::default();
    for instance in all {
        let ip = instance.address.ip();
        let label = format!("{}.addr.{}", address_label(ip), instance.datacenter);
        let Some(target) = below(domain, &label) else { continue };
        let weight = u16::try_from(instance.weight).unwrap_or(u16::MAX);
        let data = RData::SRV(SRV::new(1, weight, instance.address.port(), target.clone()));
        reply.answers.push(Record::from_rdata(question.name.clone(), INSTANCE_TTL, data));
        let additional = address(target, ip, INSTANCE_TTL);
        if !reply.additionals.contains(&additional) {
            reply.additionals.push(additional);
        }
    }
    Some(reply)
}

/// Returns the name `text` in the domain; `None`: it is too long.
fn below(domain: &Domain, text: &str) -> Option<Name> {
    Name::from_labels(text.split('.').map(str::as_bytes)).ok()?.append_domain(domain.name()).ok()
}

fn soa(domain: &Domain) -> Record {
    let at = |label: &str| below(domain, label).unwrap_or_else(|| domain.name().clone());
    let serial = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as u32);
    let data = SOA::new(at("ns"), at("hostmaster"), serial, 3600, 600, 86_400, NEGATIVE_TTL);
    Record::from_rdata(domain.name().clone(), NEGATIVE_TTL, RData::SOA(data))
}

#[cfg(test)]
mod tests;
