//! A transfer whose every byte is compared.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{client::open, name_of};

const BLOCK: usize = 64 * 1024;

/// Sends `megabytes` MiB of pseudo-random bytes to an echo server while it reads them back, both directions at
/// once. Returns `ok` (each byte came back as it was sent), `sent`, `received`, and the `error` that ended it.
pub fn transfer(to: SocketAddr, megabytes: usize) -> Value {
    let total = megabytes << 20;
    let mut received = 0;
    let mut go = || -> std::io::Result<()> {
        let mut stream = open(to, None)?;
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience)?;
        stream.set_write_timeout(patience)?;
        let mut sending = stream.try_clone()?;
        let sender = std::thread::spawn(move || -> std::io::Result<()> {
            let (mut bytes, mut block) = (Bytes::default(), vec![0; BLOCK]);
            for _ in 0..total / BLOCK {
                bytes.fill(&mut block);
                sending.write_all(&block)?;
            }
            Ok(())
        });
        let (mut bytes, mut expected, mut block) = (Bytes::default(), vec![0; BLOCK], vec![0; BLOCK]);
        while received < total {
            bytes.fill(&mut expected);
            stream.read_exact(&mut block)?;
            if block != expected {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            received += BLOCK;
        }
        sender.join().unwrap_or_else(|_| Err(std::io::Error::other("panic")))
    };
    let error = go().err().map(|e| name_of(&e));
    json!({"ok": error.is_none(), "sent": total, "received": received, "error": error})
}

/// Pseudo-random bytes, the same for both ends (xorshift64).
struct Bytes(u64);

impl Default for Bytes {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Bytes {
    fn fill(&mut self, block: &mut [u8]) {
        for word in block.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_ne_bytes());
        }
    }
}
