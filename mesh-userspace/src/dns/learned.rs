//! What servers say, for those who have to know before the program does.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData},
};

use super::Route;
use crate::identity::ServiceName;

/// An answer of a server to a workload's query: addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// The workload that asked.
    pub service: ServiceName,
    /// Who said it: whoever the program chose to ask.
    pub server: SocketAddr,
    /// The name that was asked for, in lower case and without the last dot.
    pub name: String,
    /// Its addresses, those of the names that it is an alias of included; not empty.
    pub addresses: Vec<IpAddr>,
    /// The shortest of the records'.
    pub ttl: Duration,
}

/// Called before the program gets the answer; it must not wait.
pub type Observer = Arc<dyn Fn(&Learned) + Send + Sync>;

#[derive(Default)]
pub struct Observers(RwLock<Vec<Observer>>);

impl Observers {
    pub fn add(&self, observer: Observer) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(observer);
    }

    /// Tells all of what `response` says.
    pub fn tell(&self, route: &Route, response: &[u8]) {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() {
            return;
        }
        if let Some(learned) = read(route, response) {
            all.iter().for_each(|observer| observer(&learned));
        }
    }
}

/// Returns the addresses that a response gives to the name in its question.
fn read(route: &Route, response: &[u8]) -> Option<Learned> {
    let message = Message::from_vec(response).ok()?;
    let [question] = message.queries.as_slice() else { return None };
    if message.metadata.response_code != ResponseCode::NoError {
        return None;
    }
    let mut name: Name = question.name.to_lowercase();
    let (mut addresses, mut ttl) = (Vec::new(), u32::MAX);
    // Aliases come before what they stand for (RFC 1034, 3.6.2); one that does not is not followed.
    for record in &message.answers {
        if record.name.to_lowercase() != name {
            continue;
        }
        match &record.data {
            RData::CNAME(alias) => name = alias.0.to_lowercase(),
            data => match data.ip_addr() {
                Some(ip) => addresses.push(ip),
                None => continue,
            },
        }
        ttl = ttl.min(record.ttl);
    }
    let text = question.name.to_lowercase().to_ascii();
    let name = text.trim_end_matches('.').to_owned();
    let Route { server, service } = route.clone();
    let ttl = Duration::from_secs(ttl.into());
    (!addresses.is_empty()).then_some(Learned { service, server, name, addresses, ttl })
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{OpCode, Query},
        rr::{Record, RecordType, rdata::CNAME},
    };
    use proptest::prelude::*;

    use super::*;

    fn route() -> Route {
        Route { server: "10.0.0.53:53".parse().unwrap(), service: "web".parse().unwrap() }
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn addresses_of_the_name_and_its_aliases_are_learned_and_no_others() {
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(name("API.example.com."), RecordType::A));
        let a = |owner: &str, ip: [u8; 4]| {
            Record::from_rdata(name(owner), 30, RData::A(std::net::Ipv4Addr::from(ip).into()))
        };
        let alias = RData::CNAME(CNAME(name("real.example.net.")));
        message.add_answer(Record::from_rdata(name("api.example.com."), 300, alias));
        message.add_answer(a("REAL.example.net.", [192, 0, 2, 1]));
        message.add_answer(a("other.example.net.", [192, 0, 2, 66]));
        message.add_additional(a("real.example.net.", [192, 0, 2, 67]));
        let learned = read(&route(), &message.to_vec().unwrap()).unwrap();
        assert_eq!(learned.name, "api.example.com");
        assert_eq!(learned.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(learned.ttl, Duration::from_secs(30));
        assert_eq!(learned.service.as_str(), "web");
    }

    #[test]
    fn what_has_no_address_teaches_nothing() {
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(name("a.example."), RecordType::A));
        assert_eq!(read(&route(), &message.to_vec().unwrap()), None);
        message.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(read(&route(), &message.to_vec().unwrap()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = read(&route(), &bytes);
        }
    }
}
