//! From records to a message: what the client takes, and no more.

use hickory_proto::{
    op::{Edns, Message, OpCode, ResponseCode},
    rr::Record,
};

/// How the query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What a client without EDNS takes over UDP (RFC 1035, 4.2.1).
const SMALLEST: u16 = 512;
/// What is sent over UDP at most: nothing on loopback cuts it into fragments.
const LARGEST: u16 = 4096;

#[derive(Debug)]
pub struct Reply {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    /// The SOA, where there is no answer.
    pub authority: Option<Record>,
    /// Addresses of what the answers name; left out first.
    pub additionals: Vec<Record>,
}

impl Default for Reply {
    fn default() -> Self {
        Self::code(ResponseCode::NoError)
    }
}

impl Reply {
    pub fn code(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authority: None, additionals: Vec::new() }
    }

    /// Returns the response to `query`, truncated to what fits; `None` when it cannot be written.
    pub fn encode(self, query: &Message, transport: Transport) -> Option<Vec<u8>> {
        let mut message = Message::response(query.metadata.id, OpCode::Query);
        message.metadata.response_code = self.code;
        message.metadata.authoritative = true;
        message.metadata.recursion_desired = query.metadata.recursion_desired;
        // For names of others it is.
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = query.metadata.checking_disabled;
        message.queries.clone_from(&query.queries);
        message.answers = self.answers;
        message.authorities.extend(self.authority);
        message.additionals = self.additionals;
        let asked = query.edns.as_ref();
        if let Some(asked) = asked {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGEST).set_version(0).set_dnssec_ok(asked.flags().dnssec_ok);
            message.edns = Some(edns);
            if asked.version() > 0 {
                message.metadata.response_code = ResponseCode::BADVERS;
                message.answers.clear();
                message.authorities.clear();
                message.additionals.clear();
            }
        }
        let limit = match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => {
                usize::from(asked.map_or(SMALLEST, |edns| edns.max_payload().clamp(SMALLEST, LARGEST)))
            }
        };
        fit(message, limit)
    }
}

/// Returns the message in at most `limit` bytes: without additional records, and then with fewer answers, marked so.
fn fit(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    let whole = message.to_vec().ok()?;
    if whole.len() <= limit {
        return Some(whole);
    }
    message.additionals.clear();
    loop {
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        if message.answers.is_empty() {
            return None;
        }
        message.metadata.truncation = true;
        // About as many as fit, and one less each time.
        let most = message.answers.len() * limit / bytes.len();
        message.answers.truncate(most.min(message.answers.len() - 1));
    }
}
