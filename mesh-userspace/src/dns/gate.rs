//! Which queries leave the host: what a program asks for goes out with its query, so who may not talk to the outside may
//! not ask it either.

use std::{net::SocketAddr, sync::Arc};

use hickory_proto::op::{Message, OpCode, ResponseCode};

use super::Route;
use crate::identity::ServiceName;

/// A query that is about to be asked of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving<'a> {
    /// The workload that asks.
    pub service: &'a ServiceName,
    /// Whom it asks.
    pub server: SocketAddr,
    /// The name that it asks for, in lower case and without the last dot; `None`: it cannot be read, or is no plain query
    /// for one name.
    pub name: Option<String>,
}

/// Whether a query may leave; it must not wait.
pub type Gate = Arc<dyn Fn(&Leaving<'_>) -> bool + Send + Sync>;

/// Returns what to answer instead of asking the server; `None`: it may be asked.
pub(super) fn refusal(gate: Option<&Gate>, route: &Route, query: &[u8]) -> Option<Refusal> {
    let gate = gate?;
    let message = Message::from_vec(query).ok();
    let name = message.as_ref().and_then(|message| match message.queries.as_slice() {
        [question] if message.metadata.op_code == OpCode::Query => {
            let text = question.name.to_lowercase().to_ascii();
            Some(text.trim_end_matches('.').to_owned())
        }
        _ => None,
    });
    let leaving = Leaving { service: &route.service, server: route.server, name };
    (!gate(&leaving)).then(|| Refusal(message.and_then(|message| refused(&message))))
}

/// What a program is told whose query may not leave; nothing, where the query cannot be read.
pub(super) struct Refusal(pub Option<Vec<u8>>);

fn refused(query: &Message) -> Option<Vec<u8>> {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.response_code = ResponseCode::Refused;
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.queries.clone_from(&query.queries);
    answer.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use hickory_proto::{op::Query, rr::RecordType};

    use super::*;
    use crate::dns::is_response_to;

    fn query(name: &str) -> Vec<u8> {
        let mut query = Message::query();
        query.add_query(Query::query(name.parse().unwrap(), RecordType::A));
        query.to_vec().unwrap()
    }

    fn route() -> Route {
        Route { server: "10.0.0.53:53".parse().unwrap(), service: "web".parse().unwrap() }
    }

    #[test]
    fn a_query_that_may_not_leave_is_refused_and_one_that_may_is_not() {
        let gate: Gate = Arc::new(|leaving| leaving.name.as_deref() == Some("api.example.com"));
        assert!(refusal(Some(&gate), &route(), &query("API.example.com.")).is_none());
        let asked = query("secret.evil.org.");
        let Refusal(answer) = refusal(Some(&gate), &route(), &asked).unwrap();
        let answer = answer.unwrap();
        assert!(is_response_to(&answer, &asked));
        assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, ResponseCode::Refused);
        assert!(refusal(None, &route(), &asked).is_none());
    }

    #[test]
    fn what_is_no_plain_query_for_one_name_has_no_name() {
        let seen: Arc<Mutex<Vec<Option<String>>>> = Arc::default();
        let log = seen.clone();
        let gate: Gate = Arc::new(move |leaving| {
            log.lock().unwrap().push(leaving.name.clone());
            false
        });
        assert!(refusal(Some(&gate), &route(), &[0; 40]).is_some());
        assert!(refusal(Some(&gate), &route(), b"xx").unwrap().0.is_none());
        let mut two = Message::query();
        for name in ["a.test.", "b.test."] {
            two.add_query(Query::query(name.parse().unwrap(), RecordType::A));
        }
        assert!(refusal(Some(&gate), &route(), &two.to_vec().unwrap()).is_some());
        assert!(seen.lock().unwrap().iter().all(Option::is_none));
    }
}
