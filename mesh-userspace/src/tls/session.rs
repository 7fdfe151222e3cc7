//! An established TLS connection without its socket: what was sent and received goes through the caller's buffers.

use std::collections::VecDeque;

use rustls::{AlertDescription, Error, ExtractedSecrets, ProtocolVersion, SupportedCipherSuite};

use super::{
    record::{self, BadRecord, Keys, OVERHEAD, whole},
    secrets::{Heard, Secrets},
};

/// Handshake messages after the handshake: those that are looked at.
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const HELLO_REQUEST: u8 = 0;
/// The longest message that is put together from several records.
const MOST_OF_A_MESSAGE: usize = 64 * 1024;
/// So many records of handshake messages may come with no data between them.
const MOST_WITHOUT_DATA: u32 = 32;

/// Why a connection ends early.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Broken {
    #[error("{0}")]
    Record(BadRecord),
    #[error("the peer ended it with the alert {0:?}")]
    Alert(AlertDescription),
    #[error("the peer sent a message that does not belong here")]
    Unexpected,
    #[error("there are no fresh keys")]
    Keys,
}

impl From<BadRecord> for Broken {
    fn from(error: BadRecord) -> Self {
        Self::Record(error)
    }
}

/// What one record held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// So many bytes, now at the front of the caller's buffer.
    Data(usize),
    /// Nothing for the caller.
    Nothing,
    /// The peer has sent all.
    CloseNotify,
}

pub struct Session {
    sealing: Keys,
    opening: Keys,
    is_client: bool,
    version: ProtocolVersion,
    /// What the next keys come of; before TLS 1.3 there are none.
    secrets: Option<Secrets>,
    /// The application protocol (ALPN) agreed on is meshnode's own.
    pub is_meshnode: bool,
    /// A message of which a record brought the first part only.
    message: Vec<u8>,
    /// Records of handshake messages since the last data.
    without_data: u32,
    /// Sealed records that this side has to send of its own accord, before all others.
    pub owed: Vec<u8>,
    /// The application's data that came together with the handshake, by record.
    pub early: VecDeque<Vec<u8>>,
    /// And so did the end of it.
    pub closed_early: bool,
    /// Ciphertext that came together with the handshake: the first part of a record.
    pub ahead: Vec<u8>,
}

impl Session {
    /// Of a connection whose handshake is done; `heard` is what its traffic secrets were.
    pub(super) fn new(
        is_client: bool,
        suite: SupportedCipherSuite,
        keys: ExtractedSecrets,
        heard: Heard,
    ) -> Result<Self, Error> {
        let version = suite.version().version;
        let secrets = if version == ProtocolVersion::TLSv1_3 {
            let found = Secrets::new(suite, is_client, heard, &keys);
            Some(found.ok_or(Error::General(
                "the connection's secrets are not known: were its keys renewed during the handshake?".into(),
            ))?)
        } else {
            None
        };
        let of = |keys| Keys::new(version, keys).ok_or(Error::General("an unknown cipher".into()));
        Ok(Self {
            sealing: of(keys.tx)?,
            opening: of(keys.rx)?,
            is_client,
            version,
            secrets,
            is_meshnode: false,
            message: Vec::new(),
            without_data: 0,
            owed: Vec::new(),
            early: VecDeque::new(),
            closed_early: false,
            ahead: Vec::new(),
        })
    }

    pub fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// Owes the peer a change of keys where they have been used long enough.
    pub fn renew(&mut self) -> Result<(), Broken> {
        if self.sealing.are_worn() { self.renew_sealing() } else { Ok(()) }
    }

    /// Seals `data`, and `trailer` after it, into one record at the front of `out`; returns its length. See [`Keys::seal`]
    /// for the bounds.
    pub fn seal(&mut self, data: &[u8], trailer: &[u8], out: &mut [u8]) -> Result<usize, Broken> {
        Ok(self.sealing.seal(record::DATA, data, trailer, out)?)
    }

    /// Owes the peer the word that there will be no more.
    pub fn close(&mut self) -> Result<(), Broken> {
        const WARNING: u8 = 1;
        self.owe(record::ALERT, &[WARNING, u8::from(AlertDescription::CloseNotify)])
    }

    /// Owes the peer the reason why the connection ends early.
    pub fn abort(&mut self, error: &Broken) {
        const FATAL: u8 = 2;
        let alert = match error {
            Broken::Record(BadRecord::Forged) => AlertDescription::BadRecordMac,
            Broken::Record(BadRecord::Oversized) => AlertDescription::RecordOverflow,
            Broken::Record(BadRecord::Malformed) | Broken::Unexpected => AlertDescription::UnexpectedMessage,
            Broken::Record(BadRecord::Exhausted) | Broken::Keys => AlertDescription::InternalError,
            Broken::Alert(_) => return,
        };
        // Without keys there is nothing to say it with.
        let _ = self.owe(record::ALERT, &[FATAL, u8::from(alert)]);
    }

    fn owe(&mut self, kind: u8, message: &[u8]) -> Result<(), Broken> {
        let mut sealed = [0; 16 + OVERHEAD];
        let length = self.sealing.seal(kind, message, &[], &mut sealed)?;
        self.owed.extend_from_slice(&sealed[..length]);
        Ok(())
    }

    /// Opens the first record of `wire` into `plain`, which has room for a record; returns what it held, and its length.
    /// `None` while it is not all there. What came together with the handshake is before it.
    pub fn open(&mut self, wire: &[u8], plain: &mut [u8]) -> Result<Option<(Opened, usize)>, Broken> {
        if let Some(early) = self.early.pop_front() {
            plain[..early.len()].copy_from_slice(&early);
            return Ok(Some((Opened::Data(early.len()), 0)));
        }
        if self.closed_early {
            return Ok(Some((Opened::CloseNotify, 0)));
        }
        let Some(record) = whole(wire)? else { return Ok(None) };
        let (kind, length) = self.opening.open(record, plain)?;
        let held = match kind {
            record::DATA if self.message.is_empty() => {
                self.without_data = 0;
                Opened::Data(length)
            }
            record::ALERT if self.message.is_empty() => alert(&plain[..length])?,
            record::HANDSHAKE => self.take_messages(&plain[..length])?,
            _ => return Err(Broken::Unexpected),
        };
        Ok(Some((held, record.len())))
    }

    fn take_messages(&mut self, plain: &[u8]) -> Result<Opened, Broken> {
        self.without_data += 1;
        if plain.is_empty() || self.without_data > MOST_WITHOUT_DATA {
            return Err(Broken::Unexpected);
        }
        self.message.extend_from_slice(plain);
        if self.message.len() > MOST_OF_A_MESSAGE {
            return Err(Broken::Unexpected);
        }
        let all = std::mem::take(&mut self.message);
        let mut left = &all[..];
        while let [kind, a, b, c, rest @ ..] = left {
            let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap_or(usize::MAX);
            let Some((body, after)) = rest.split_at_checked(length) else { break };
            left = after;
            let modern = self.version == ProtocolVersion::TLSv1_3;
            match (kind, body) {
                // Nothing is resumed.
                (&NEW_SESSION_TICKET, _) if modern && self.is_client => {}
                // A request to negotiate anew, which one may ignore.
                (&HELLO_REQUEST, []) if !modern && self.is_client => {}
                // Nothing that the old keys sealed may follow.
                (&KEY_UPDATE, [asks @ 0..=1]) if modern && left.is_empty() => {
                    let fresh = self.secrets.as_mut().and_then(|all| all.next_opening(&self.opening));
                    self.opening = fresh.ok_or(Broken::Keys)?;
                    // One answer is enough for all that asked before it is sent.
                    if *asks == 1 && self.owed.is_empty() {
                        self.renew_sealing()?;
                    }
                }
                _ => return Err(Broken::Unexpected),
            }
        }
        self.message.extend_from_slice(left);
        Ok(Opened::Nothing)
    }

    /// Goes on with fresh keys, and owes the peer the message that says so.
    fn renew_sealing(&mut self) -> Result<(), Broken> {
        let Some(secrets) = &mut self.secrets else { return Ok(()) };
        let fresh = secrets.next_sealing(&self.sealing).ok_or(Broken::Keys)?;
        self.owe(record::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0])?;
        self.sealing = fresh;
        Ok(())
    }

    #[cfg(test)]
    pub fn wear(&mut self) {
        self.sealing.wear();
    }
}

fn alert(plain: &[u8]) -> Result<Opened, Broken> {
    let [_level, description] = plain else { return Err(Broken::Unexpected) };
    match AlertDescription::from(*description) {
        AlertDescription::CloseNotify => Ok(Opened::CloseNotify),
        AlertDescription::UserCanceled => Ok(Opened::Nothing),
        other => Err(Broken::Alert(other)),
    }
}

#[cfg(test)]
mod tests;
