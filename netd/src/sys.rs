//! Interface settings by ioctl (netdevice(7)): the only unsafe code of this program.

use std::io::{Error, Result};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

/// Network interface, and a socket for its ioctls.
pub(crate) struct Interface {
    name: [libc::c_char; libc::IFNAMSIZ],
    socket: UdpSocket,
}

fn address(ip: Ipv4Addr) -> libc::sockaddr {
    let inet = libc::sockaddr_in {
        sin_family: libc::AF_INET as _,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both types have 16 bytes, and all bit patterns are valid. The sockets API passes IPv4
    // addresses in this form.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(inet) }
}

impl Interface {
    /// Opens the interface of this name.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let mut field = [0; libc::IFNAMSIZ];
        if name.len() >= field.len() {
            return Err(Error::other(format!(
                "{name}: expected an interface name of at most {} bytes",
                field.len() - 1
            )));
        }
        for (to, from) in field.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(Self { name: field, socket: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))? })
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: an all-zero ifreq is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name;
        request
    }

    fn ioctl<T>(&self, code: libc::c_ulong, argument: &T) -> Result<()> {
        // SAFETY: every caller passes the structure that its request reads. It lives during the
        // call.
        let result = unsafe {
            libc::ioctl(self.socket.as_raw_fd(), code as _, std::ptr::from_ref(argument))
        };
        if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    }

    /// Brings the interface up.
    pub(crate) fn bring_up(&self) -> Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as _;
        self.ioctl(libc::SIOCSIFFLAGS, &request)
    }

    /// Sets address and mask. The unspecified address removes the current one.
    pub(crate) fn set_address(&self, ip: Ipv4Addr, mask: Ipv4Addr) -> Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_addr = address(ip);
        self.ioctl(libc::SIOCSIFADDR, &request)?;
        if !ip.is_unspecified() {
            request.ifr_ifru.ifru_netmask = address(mask);
            self.ioctl(libc::SIOCSIFNETMASK, &request)?;
        }
        Ok(())
    }

    /// Adds a default route, unless it exists already.
    pub(crate) fn add_default_route(&self, router: Ipv4Addr) -> Result<()> {
        // SAFETY: an all-zero rtentry is valid.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = address(router);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        match self.ioctl(libc::SIOCADDRT, &route) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }
}

/// Binds a socket to an interface and enables broadcast, so that it works before the interface has
/// an address.
pub(crate) fn bind_to_device(socket: &UdpSocket, name: &str) -> Result<()> {
    socket.set_broadcast(true)?;
    // SAFETY: the option reads `name.len()` bytes from the pointer during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_ptr().cast(),
            name.len() as _,
        )
    };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
