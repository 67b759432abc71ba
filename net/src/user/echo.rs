//! Echoes by Windows' own function, as its sockets for them want an administrator: a thread for each that is under way
//! calls it, and passes what comes on through a pair of sockets, so that the loop sees what it sees on other hosts.
use socket2::Socket;
use std::ffi::c_void;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::mpsc::{SyncSender, sync_channel};
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::NetworkManagement::IpHelper as ip;

/// How long an echo may take, in milliseconds.
const TIMEOUT: u32 = 5000;
/// Echoes of a guest's ping that wait for the one before; more are lost.
const WAITING: usize = 4;
/// Bytes of an ICMP header.
const HEADER: usize = 8;
/// What a reply's buffer has beside structure and data: an ICMP error (IcmpSendEcho's documentation).
const SPARE: usize = 8 + 16;

/// What sends a guest's echoes.
pub(super) struct Echoes(SyncSender<(Vec<u8>, u8)>);

impl Echoes {
    /// For echoes to `to`, and the socket where answers come in: ICMP messages, without an identification.
    ///
    /// # Errors
    /// The host gives no socket or thread; it is an address of IPv6, for which this is not there.
    pub fn open(to: IpAddr) -> io::Result<(Self, Socket)> {
        let IpAddr::V4(to) = to else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "by IPv4 only"));
        };
        let (ours, theirs) =
            (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
        // Nobody else's datagrams come in then.
        ours.connect(theirs.local_addr()?)?;
        theirs.connect(ours.local_addr()?)?;
        let (send, requests) = sync_channel::<(Vec<u8>, u8)>(WAITING);
        // It ends with who sends.
        std::thread::Builder::new().name("mynah-echo".into()).spawn(move || {
            for (message, hops) in requests {
                if let Some(answer) = echo(to, &message, hops) {
                    let _ = theirs.send(&answer);
                }
            }
        })?;
        Ok((Self(send), ours.into()))
    }

    /// Sends an echo request, an ICMP message.
    pub fn send(&self, message: &[u8], hops: u8) {
        let _ = self.0.try_send((message.to_vec(), hops));
    }
}

/// Sends an echo request, and waits for its answer.
fn echo(to: Ipv4Addr, message: &[u8], hops: u8) -> Option<Vec<u8>> {
    let (head, data) = message.split_at_checked(HEADER)?;
    let len = u16::try_from(data.len()).ok()?;
    // SAFETY: it takes nothing.
    let handle = unsafe { ip::IcmpCreateFile() };
    if handle == INVALID_HANDLE_VALUE {
        return None;
    }
    let options = ip::IP_OPTION_INFORMATION { Ttl: hops, ..Default::default() };
    let mut room = vec![0_u64; (size_of::<ip::ICMP_ECHO_REPLY>() + data.len() + SPARE).div_ceil(8)];
    // SAFETY: data, options and the buffer for the answer live through the call, and their lengths are theirs.
    let answers = unsafe {
        ip::IcmpSendEcho(
            handle,
            u32::from_ne_bytes(to.octets()),
            data.as_ptr().cast::<c_void>(),
            len,
            &raw const options,
            room.as_mut_ptr().cast(),
            size_of_val(&room[..]) as u32,
            TIMEOUT,
        )
    };
    // SAFETY: it was opened above, and is not used any more.
    unsafe { ip::IcmpCloseHandle(handle) };
    if answers == 0 {
        return None;
    }
    // SAFETY: there is an answer, which begins the buffer; any bits are one.
    let answer = unsafe { room.as_ptr().cast::<ip::ICMP_ECHO_REPLY>().read() };
    // Others are of routers on the way.
    if answer.Status != ip::IP_SUCCESS || usize::from(answer.DataSize) != data.len() {
        return None;
    }
    // It is what was sent, or it is no answer to that.
    let mut whole = vec![0; 4];
    whole.extend_from_slice(&head[4..]);
    whole.extend_from_slice(data);
    Some(whole)
}
