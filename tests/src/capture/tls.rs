//! What an observer can see of a TLS 1.3 conversation.

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const PRE_SHARED_KEY: u16 = 41;
const SUPPORTED_VERSIONS: u16 = 43;
const KEY_SHARE: u16 = 51;
const TLS13: [u8; 2] = [3, 4];

/// Checks both directions of a conversation: hellos that negotiate TLS 1.3, then only encrypted records. (The client's
/// certificate is encrypted in TLS 1.3; that there was one is shown by the flow record, which names the peer, and by the
/// refusal of a client without.)
///
/// # Errors
/// Words, for the first thing that is otherwise.
pub fn check_tls13(to_server: &[u8], to_client: &[u8]) -> Result<(), String> {
    check_direction(to_server, CLIENT_HELLO)?;
    check_direction(to_client, SERVER_HELLO)
}

/// Checks that all the records of a direction, of which the beginning was not seen, are encrypted.
///
/// # Errors
/// Words, for the first one that is not.
pub fn check_sealed(bytes: &[u8]) -> Result<(), String> {
    let mut records = Records(bytes);
    let begun = records.by_ref().map(|(kind, _)| kind).collect::<Vec<_>>().into_iter();
    // Of the last one, too, of which the end was not seen.
    match begun.chain(records.0.first().copied()).find(|kind| *kind != APPLICATION_DATA) {
        Some(kind) => Err(format!("a record of type {kind} in clear")),
        None => Ok(()),
    }
}

fn check_direction(bytes: &[u8], hello: u8) -> Result<(), String> {
    let mut records = Records(bytes);
    let (kind, first) = records.next().ok_or("it ended before the first record")?;
    if kind != HANDSHAKE || first.first() != Some(&hello) {
        return Err(format!("it begins with a record of type {kind} instead of hello {hello}"));
    }
    let offered = supported_versions(first, hello).ok_or("the hello has no supported_versions")?;
    if !offered.chunks(2).any(|version| version == TLS13) {
        return Err(format!("the hello's versions are {offered:02x?}"));
    }
    let mut retried = false;
    for (kind, body) in records {
        match kind {
            APPLICATION_DATA | CHANGE_CIPHER_SPEC => {}
            // A second hello, after the server asked for another key share.
            HANDSHAKE if !retried && body.first() == Some(&hello) => retried = true,
            ALERT => return Err(format!("an alert in clear: {body:02x?}")),
            other => return Err(format!("a record of type {other} in clear")),
        }
    }
    Ok(())
}

/// The versions in a hello: the list that a client offers, or the one that a server chose.
fn supported_versions(message: &[u8], hello: u8) -> Option<&[u8]> {
    let body = extension(message, hello, SUPPORTED_VERSIONS)?;
    if hello == CLIENT_HELLO { body.get(1..) } else { Some(body) }
}

/// What a server chose for a connection, by the numbers that the protocol gives them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chosen {
    pub suite: u16,
    /// The group of the key exchange; a resumption may have none.
    pub group: Option<u16>,
    /// Whether it goes on with the session of an earlier connection.
    pub resumed: bool,
}

/// Returns what the TLS 1.3 server whose bytes these are chose; `None` before it did, and with another version.
pub fn chosen(to_client: &[u8]) -> Option<Chosen> {
    let hellos = Records(to_client).take_while(|(kind, _)| matches!(*kind, HANDSHAKE | CHANGE_CIPHER_SPEC));
    // The last: a first one may have asked for another key share.
    let hello =
        hellos.filter(|(kind, body)| *kind == HANDSHAKE && body.first() == Some(&SERVER_HELLO)).last()?.1;
    (supported_versions(hello, SERVER_HELLO)? == TLS13).then_some(())?;
    let word = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?));
    Some(Chosen {
        suite: word(after_vec8(hello.get(38..)?)?)?,
        group: extension(hello, SERVER_HELLO, KEY_SHARE).and_then(word),
        resumed: extension(hello, SERVER_HELLO, PRE_SHARED_KEY).is_some(),
    })
}

/// Returns the body of a hello's extension.
fn extension(message: &[u8], hello: u8, wanted: u16) -> Option<&[u8]> {
    // Type (1), length (3), legacy version (2), random (32).
    let mut rest = after_vec8(message.get(38..)?)?;
    if hello == CLIENT_HELLO {
        rest = rest.get(2 + usize::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?))..)?;
        rest = after_vec8(rest)?;
    } else {
        rest = rest.get(3..)?;
    }
    rest = rest.get(2..)?;
    while rest.len() >= 4 {
        let kind = u16::from_be_bytes(rest[..2].try_into().ok()?);
        let length = usize::from(u16::from_be_bytes(rest[2..4].try_into().ok()?));
        let body = rest.get(4..4 + length)?;
        if kind == wanted {
            return Some(body);
        }
        rest = &rest[4 + length..];
    }
    None
}

fn after_vec8(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(1 + usize::from(*bytes.first()?)..)
}

/// The records of a stream; one that was not seen to its end is left out.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_be_bytes(self.0.get(3..5)?.try_into().ok()?));
        let item = (self.0[0], self.0.get(5..5 + length)?);
        self.0 = &self.0[5 + length..];
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hello with nothing in it but the extension.
    fn hello(kind: u8, versions: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 38];
        body[0] = kind;
        body.push(0);
        if kind == CLIENT_HELLO {
            body.extend([0, 2, 0x13, 1, 1, 0]);
        } else {
            body.extend([0x13, 1, 0]);
        }
        let listed: Vec<u8> = if kind == CLIENT_HELLO {
            std::iter::once(versions.len() as u8).chain(versions.iter().copied()).collect()
        } else {
            versions.to_vec()
        };
        body.extend([0, 4 + listed.len() as u8, 0, 43, 0, listed.len() as u8]);
        body.extend(listed);
        record(HANDSHAKE, &body)
    }

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind, 3, 3, 0, body.len() as u8], body].concat()
    }

    fn with(mut hello: Vec<u8>, more: &[u8]) -> Vec<u8> {
        hello.extend(more);
        hello
    }

    #[test]
    fn tls13_is_told_from_what_is_not() {
        let client = hello(CLIENT_HELLO, &[3, 4, 3, 3]);
        let server = hello(SERVER_HELLO, &[3, 4]);
        let data = record(APPLICATION_DATA, b"xxxx");
        assert_eq!(check_tls13(&with(client.clone(), &data), &with(server.clone(), &data)), Ok(()));
        assert!(check_tls13(&client, &hello(SERVER_HELLO, &[3, 3])).is_err(), "1.2 was chosen");
        assert!(check_tls13(&hello(CLIENT_HELLO, &[3, 3]), &server).is_err(), "1.3 was not offered");
        let in_clear = record(HANDSHAKE, &[11, 0, 0, 0]);
        assert!(check_tls13(&with(client.clone(), &in_clear), &server).is_err(), "a certificate in clear");
        assert!(check_tls13(b"GET / HTTP/1.1\r\n\r\n", &server).is_err());
        assert!(check_tls13(b"", b"").is_err());
        assert_eq!(check_sealed(&with(data.clone(), &data)), Ok(()));
        assert!(check_sealed(&with(data, &in_clear)).is_err());
        assert!(check_sealed(b"GET / HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn what_the_server_chose_is_in_its_last_hello() {
        let first = hello(SERVER_HELLO, &[3, 4]);
        let mut body = first[5..].to_vec();
        body[40] = 2;
        body.extend([0, 51, 0, 4, 0, 0x1d, 0, 0, 0, 41, 0, 0]);
        let second = record(HANDSHAKE, &body);
        assert_eq!(chosen(&first), Some(Chosen { suite: 0x1301, group: None, resumed: false }));
        let both = [first, record(CHANGE_CIPHER_SPEC, &[1]), second, record(APPLICATION_DATA, b"x")].concat();
        assert_eq!(chosen(&both), Some(Chosen { suite: 0x1302, group: Some(0x1d), resumed: true }));
        assert_eq!(chosen(&hello(SERVER_HELLO, &[3, 3])), None);
        assert_eq!(chosen(b"HTTP/1.1 200 OK\r\n"), None);
    }
}
