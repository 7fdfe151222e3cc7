//! TLS records, sealed and opened with the keys that a rustls handshake agreed on.
//!
//! rustls' own record layer moves each byte through buffers of its own. Here the cipher reads from the caller's buffer and
//! writes into another one of the caller's, and nothing else touches the byte.

use std::fmt;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::{
    ConnectionTrafficSecrets, ProtocolVersion,
    crypto::cipher::{AeadKey, Iv},
};
use zeroize::Zeroizing;

/// Content types.
pub const CHANGE_CIPHER_SPEC: u8 = 20;
pub const ALERT: u8 = 21;
pub const HANDSHAKE: u8 = 22;
pub const DATA: u8 = 23;

/// The most plaintext that one record carries.
pub const MOST: usize = 16 * 1024;
const HEADER: usize = 5;
const TAG: usize = 16;
/// The part of the nonce that TLS 1.2 sends with each AES-GCM record.
const EXPLICIT: usize = 8;
/// The most that sealing adds to a record's plaintext.
pub const OVERHEAD: usize = HEADER + EXPLICIT + TAG;
/// The most that may follow a header: TLS 1.2 allows the most.
const MOST_SEALED: usize = MOST + 2048;
const _: () = assert!(HEADER + MOST + 1 + TAG <= MOST + OVERHEAD);

/// Why a record cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRecord {
    /// It is none.
    Malformed,
    Oversized,
    /// It was changed on the way, or not made with these keys.
    Forged,
    /// The keys have sealed as many records as they may.
    Exhausted,
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "what was received is no TLS record",
            Self::Oversized => "a TLS record is longer than allowed",
            Self::Forged => "a TLS record cannot be decrypted",
            Self::Exhausted => "the keys of the TLS connection have been used as often as they may",
        })
    }
}

/// The keys of one direction.
pub struct Keys {
    key: LessSafeKey,
    iv: [u8; 12],
    /// Of the next record.
    sequence: u64,
    format: Format,
    /// AES-GCM may seal fewer records than sequence numbers can count.
    limit: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Tls13,
    /// AES-GCM, with a part of the nonce in each record.
    Tls12Explicit,
    Tls12,
}

/// More records than are sealed between two questions for fresh keys.
const RESERVE: u64 = 1024;
/// RFC 8446, 5.5: 2^24.5 full records.
const GCM_LIMIT: u64 = 23_726_566;

/// The longest key of a cipher here.
const MOST_OF_A_KEY: usize = 32;

/// Returns what keys are made of; `None`: for a cipher that [`provider`](super::provider) does not have.
pub(super) fn parts(secrets: &ConnectionTrafficSecrets) -> Option<(&'static Algorithm, &AeadKey, &Iv)> {
    use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
    Some(match secrets {
        Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
        Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
        Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
        _ => return None,
    })
}

impl Keys {
    /// `None`: a cipher that [`provider`](super::provider) does not have.
    pub fn new(version: ProtocolVersion, from: (u64, ConnectionTrafficSecrets)) -> Option<Self> {
        let (sequence, secrets) = from;
        let (algorithm, key, iv) = parts(&secrets)?;
        let gcm = *algorithm != CHACHA20_POLY1305;
        let format = match (version == ProtocolVersion::TLSv1_3, gcm) {
            (true, _) => Format::Tls13,
            (false, true) => Format::Tls12Explicit,
            (false, false) => Format::Tls12,
        };
        Some(Self {
            key: LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?),
            iv: iv.as_ref().try_into().ok()?,
            sequence,
            format,
            limit: if gcm { GCM_LIMIT } else { u64::MAX - 1 },
        })
    }

    /// Returns the next keys of this direction, of which `derive` writes what a label names.
    pub fn next(&self, derive: impl Fn(&[u8], &mut [u8])) -> Option<Self> {
        let algorithm = self.key.algorithm();
        let (mut key, mut iv) = (Zeroizing::new([0; MOST_OF_A_KEY]), [0; 12]);
        let key = key.get_mut(..algorithm.key_len())?;
        derive(b"key", key);
        derive(b"iv", &mut iv);
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?);
        Some(Self { key, iv, sequence: 0, ..*self })
    }

    /// Whether fresh keys should be agreed on before the next batch of records.
    pub fn are_worn(&self) -> bool {
        self.sequence + RESERVE >= self.limit
    }

    #[cfg(test)]
    pub fn wear(&mut self) {
        self.limit = self.sequence + RESERVE;
    }

    /// Writes the record of `data`, and of `trailer` after it, to the front of `out`, and returns its length. The
    /// caller sees to it that both together are no more than [`MOST`], and that `out` has [`OVERHEAD`] more.
    pub fn seal(
        &mut self,
        kind: u8,
        data: &[u8],
        trailer: &[u8],
        out: &mut [u8],
    ) -> Result<usize, BadRecord> {
        let nonce = self.nonce();
        let plain = data.len() + trailer.len();
        let (version, explicit, inner) = match self.format {
            Format::Tls13 => (DATA, 0, 1),
            Format::Tls12Explicit => (kind, EXPLICIT, 0),
            Format::Tls12 => (kind, 0, 0),
        };
        let length = explicit + plain + inner + TAG;
        let (header, body) = out.split_at_mut(HEADER);
        header.copy_from_slice(&head(version, length));
        body[..explicit].copy_from_slice(&nonce[12 - explicit..]);
        let (sealed, rest) = body[explicit..length].split_at_mut(data.len());
        let mut extra = [0; 8];
        extra[..trailer.len()].copy_from_slice(trailer);
        extra[trailer.len()] = kind;
        let extra = &extra[..trailer.len() + inner];
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealing = match self.format {
            Format::Tls13 => {
                self.key.seal_out_of_place_scatter(nonce, Aad::from(&*header), data, sealed, extra, rest)
            }
            _ => {
                let aad = Aad::from(self.associated(kind, plain));
                self.key.seal_out_of_place_scatter(nonce, aad, data, sealed, extra, rest)
            }
        };
        sealing.map_err(|_| BadRecord::Oversized)?;
        self.sequence += 1;
        if self.sequence > self.limit {
            return Err(BadRecord::Exhausted);
        }
        Ok(HEADER + length)
    }

    /// Decrypts the first record of `wire`, which [`whole`] found there, to the front of `plain`, which is as long as the
    /// record at least. Returns its content type and how much plaintext it has.
    pub fn open(&mut self, record: &[u8], plain: &mut [u8]) -> Result<(u8, usize), BadRecord> {
        let (header, body) = record.split_at(HEADER);
        let mut nonce = self.nonce();
        let body = if self.format == Format::Tls12Explicit {
            let (explicit, body) = body.split_at_checked(EXPLICIT).ok_or(BadRecord::Malformed)?;
            nonce[12 - EXPLICIT..].copy_from_slice(explicit);
            body
        } else {
            body
        };
        let length = body.len().checked_sub(TAG).ok_or(BadRecord::Malformed)?;
        let (sealed, tag) = body.split_at(length);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain = &mut plain[..length];
        let opening = match self.format {
            Format::Tls13 => self.key.open_separate_gather(nonce, Aad::from(header), sealed, tag, plain),
            _ => {
                let aad = Aad::from(self.associated(header[0], length));
                self.key.open_separate_gather(nonce, aad, sealed, tag, plain)
            }
        };
        opening.map_err(|_| BadRecord::Forged)?;
        // How often keys seal is their sender's affair.
        self.sequence = self.sequence.checked_add(1).ok_or(BadRecord::Exhausted)?;
        let (kind, length) = if self.format == Format::Tls13 {
            if header[0] != DATA {
                return Err(BadRecord::Malformed);
            }
            // Zeros may pad it.
            let end = plain.iter().rposition(|byte| *byte != 0).ok_or(BadRecord::Malformed)?;
            (plain[end], end)
        } else {
            (header[0], length)
        };
        if length > MOST { Err(BadRecord::Oversized) } else { Ok((kind, length)) }
    }

    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, of) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of;
        }
        nonce
    }

    /// What TLS 1.2 authenticates besides the plaintext.
    fn associated(&self, kind: u8, length: usize) -> [u8; 13] {
        let mut data = [0; 13];
        data[..8].copy_from_slice(&self.sequence.to_be_bytes());
        data[8..].copy_from_slice(&head(kind, length));
        data
    }
}

fn head(kind: u8, length: usize) -> [u8; HEADER] {
    let [high, low] = u16::try_from(length).expect("invariant: a record is short").to_be_bytes();
    [kind, 3, 3, high, low]
}

/// Returns the first record of `wire`; `None` while it is not all there.
pub fn whole(wire: &[u8]) -> Result<Option<&[u8]>, BadRecord> {
    let Some((header, _)) = wire.split_at_checked(HEADER) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if !(CHANGE_CIPHER_SPEC..=DATA).contains(&header[0]) || header[1] != 3 {
        return Err(BadRecord::Malformed);
    }
    if length > MOST_SEALED {
        return Err(BadRecord::Oversized);
    }
    Ok(wire.get(..HEADER + length))
}
