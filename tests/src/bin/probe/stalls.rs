//! Both ways at once, by ends that stall at random: each byte is compared, and how it ended is told. What is random follows
//! from the seed.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{client::open, name_of};

const PATIENCE: Duration = Duration::from_secs(120);
const HEADER: usize = 40;

/// What both ends have to know: the caller says it first.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    seed: u64,
    /// Bytes from the caller to the server, and back.
    up: u64,
    down: u64,
    ending: Ending,
    /// After so many of its own bytes an end resets.
    at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    InOrder,
    CallerResets,
    ServerResets,
}

impl Plan {
    /// `most` bytes each way, or fewer: of each direction as many as the seed says.
    pub fn new(seed: u64, most: u64, ending: &str) -> Result<Self, String> {
        let ending = match ending {
            "in-order" => Ending::InOrder,
            "caller-resets" => Ending::CallerResets,
            "server-resets" => Ending::ServerResets,
            other => return Err(format!("unknown ending `{other}`")),
        };
        let mut random = Random(seed | 1);
        let mut some = |most: u64| random.below(most) + 1;
        let (up, down) = (some(most), some(most));
        let resetting = if ending == Ending::ServerResets { down } else { up };
        Ok(Self { seed, up, down, ending, at: some(resetting) - 1 })
    }

    fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let all = [self.seed, self.up, self.down, self.ending as u64, self.at];
        for (to, number) in bytes.chunks_exact_mut(8).zip(all) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER]) -> io::Result<Self> {
        let number =
            |nth: usize| u64::from_le_bytes(bytes[nth * 8..nth * 8 + 8].try_into().expect("eight bytes"));
        let endings = [Ending::InOrder, Ending::CallerResets, Ending::ServerResets];
        let ending = usize::try_from(number(3)).ok().and_then(|nth| endings.get(nth));
        let ending = *ending.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { seed: number(0), up: number(1), down: number(2), ending, at: number(4) })
    }
}

/// The caller's side. Returns `ok` (it went as planned), `seed`, `received`, whether all of that is `right`, how it `end`ed.
pub fn call(to: SocketAddr, plan: Plan) -> Value {
    let outcome = open(to, None).and_then(|mut stream| {
        stream.write_all(&plan.to_bytes())?;
        // Before it is known, a reset could overtake it.
        stream.read_exact(&mut [0])?;
        let resets = (plan.ending == Ending::CallerResets).then_some(plan.at);
        let sends = Sends { seed: plan.seed, total: plan.up, resets };
        let gets = Gets { seed: !plan.seed, total: plan.down, is_cut: plan.ending == Ending::ServerResets };
        Ok(converse(stream, sends, gets, plan.seed ^ 1))
    });
    outcome.unwrap_or_else(|e| json!({"ok": false, "seed": plan.seed, "right": true, "end": name_of(&e)}))
}

/// The server's side; `None` for a connection that said nothing, as a health check does.
pub fn attend(mut stream: TcpStream) -> Option<Value> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).ok()?;
    let plan = Plan::from_bytes(&header).ok()?;
    stream.write_all(&[1]).ok()?;
    let resets = (plan.ending == Ending::ServerResets).then_some(plan.at);
    let sends = Sends { seed: !plan.seed, total: plan.down, resets };
    let gets = Gets { seed: plan.seed, total: plan.up, is_cut: plan.ending == Ending::CallerResets };
    let mut said = converse(stream, sends, gets, plan.seed ^ 2);
    said["seed"] = plan.seed.into();
    Some(said)
}

struct Sends {
    seed: u64,
    total: u64,
    /// After so many bytes this end resets.
    resets: Option<u64>,
}

struct Gets {
    seed: u64,
    total: u64,
    /// The other end resets before that.
    is_cut: bool,
}

fn converse(stream: TcpStream, sends: Sends, gets: Gets, seed: u64) -> Value {
    let limited =
        stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    limited.expect("a timeout can be set");
    let resetting = AtomicBool::new(false);
    let (sent, (received, right, end)) = thread::scope(|scope| {
        let sender = scope.spawn(|| send(&stream, &sends, Random(seed | 1), &resetting));
        let got = receive(&stream, gets.seed, Random(seed.rotate_left(17) | 1));
        (sender.join().expect("it does not panic"), got)
    });
    let is_mine = resetting.load(Relaxed);
    if is_mine {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER can be set");
    }
    drop(stream);
    // The error is told once, to whichever of the two asks first.
    let end = match (end, sent.err()) {
        (Ok(()), None) => "eof".to_owned(),
        (Err(error), _) if name_of(&error) != "EPIPE" => name_of(&error),
        (_, Some(error)) | (Err(error), None) => name_of(&error),
    };
    let ok = right
        && if is_mine {
            received <= gets.total
        } else if gets.is_cut {
            received < gets.total && end == "ECONNRESET"
        } else {
            received == gets.total && end == "eof"
        };
    json!({"ok": ok, "received": received, "of": gets.total, "right": right, "end": end, "resets": is_mine})
}

fn send(mut stream: &TcpStream, sends: &Sends, mut random: Random, resetting: &AtomicBool) -> io::Result<()> {
    let (mut bytes, mut left) = (Bytes::of(sends.seed), sends.resets.unwrap_or(sends.total));
    let mut piece = vec![0; 128 * 1024];
    while left > 0 {
        let length = random.length(piece.len()).min(usize::try_from(left).unwrap_or(usize::MAX));
        bytes.fill(&mut piece[..length]);
        stream.write_all(&piece[..length])?;
        left -= length as u64;
        random.stall();
    }
    if sends.resets.is_some() {
        resetting.store(true, Relaxed);
        // It wakes the one who reads here, and sends nothing.
        let _ = stream.shutdown(Shutdown::Read);
        return Ok(());
    }
    stream.shutdown(Shutdown::Write)
}

/// Returns how many bytes came, whether each was right, and how that ended.
fn receive(mut stream: &TcpStream, seed: u64, mut random: Random) -> (u64, bool, io::Result<()>) {
    let (mut bytes, mut received) = (Bytes::of(seed), 0);
    let (mut piece, mut expected) = (vec![0; 128 * 1024], vec![0; 128 * 1024]);
    loop {
        let most = random.length(piece.len());
        match stream.read(&mut piece[..most]) {
            Ok(0) => return (received, true, Ok(())),
            Ok(length) => {
                bytes.fill(&mut expected[..length]);
                if piece[..length] != expected[..length] {
                    return (received, false, Ok(()));
                }
                received += length as u64;
            }
            Err(error) => return (received, true, Err(error)),
        }
        random.stall();
    }
}

/// The bytes of one direction.
struct Bytes {
    random: Random,
    word: [u8; 8],
    used: usize,
}

impl Bytes {
    fn of(seed: u64) -> Self {
        Self { random: Random(seed | 1), word: [0; 8], used: 8 }
    }

    fn fill(&mut self, piece: &mut [u8]) {
        for byte in piece {
            if self.used == self.word.len() {
                self.word = self.random.next().to_ne_bytes();
                self.used = 0;
            }
            *byte = self.word[self.used];
            self.used += 1;
        }
    }
}

/// xorshift64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// From one byte to `most`, of each magnitude as often.
    fn length(&mut self, most: usize) -> usize {
        let magnitude = self.below(u64::from(most.ilog2()) + 1);
        usize::try_from(self.below(1 << magnitude)).unwrap_or(0).min(most - 1) + 1
    }

    /// Mostly not; now and then for long enough that buffers fill up.
    fn stall(&mut self) {
        let ms = match self.below(512) {
            0 => 50 + self.below(200),
            1..=8 => self.below(10),
            _ => return,
        };
        thread::sleep(Duration::from_millis(ms));
    }
}
