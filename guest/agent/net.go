package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/link"
)

// linkUp sets a network interface up. A kernel without network has nothing to
// set up.
func linkUp(name string) error {
	fd, err := inetSocket()
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	return ifUp(fd, name)
}

// inetSocket returns a socket for interface ioctls, or -1 when the kernel has
// no IPv4.
func inetSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return -1, nil
	}
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	return fd, nil
}

func ifUp(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("interface %s: set up: %w", name, err)
	}
	return nil
}

// configureNet gives interfaces their static addresses and writes resolvConf
// when there are name servers.
func configureNet(ifs []link.Interface, resolvConf string) error {
	if len(ifs) == 0 {
		return nil
	}
	fd, err := inetSocket()
	if err != nil {
		return err
	}
	if fd < 0 {
		return errors.New("the kernel has no IPv4")
	}
	defer unix.Close(fd)
	var errs []error
	var dns strings.Builder
	for _, i := range ifs {
		if err := configureInterface(fd, i); err != nil {
			errs = append(errs, err)
		}
		for _, s := range i.DNS {
			fmt.Fprintf(&dns, "nameserver %s\n", s)
		}
	}
	if dns.Len() > 0 {
		errs = append(errs, os.MkdirAll("/etc", 0o755), os.WriteFile(resolvConf, []byte(dns.String()), 0o644))
	}
	return errors.Join(errs...)
}

func configureInterface(fd int, i link.Interface) error {
	if i.Address != "" {
		p, err := netip.ParsePrefix(i.Address)
		if err != nil || !p.Addr().Is4() {
			return fmt.Errorf("interface %s: address %q: want IPv4 with a prefix length, as 10.0.2.15/24", i.Name, i.Address)
		}
		var mask [4]byte
		binary.BigEndian.PutUint32(mask[:], ^uint32(0)<<(32-p.Bits()))
		addr := p.Addr().As4()
		for _, set := range []struct {
			req  uint
			addr []byte
		}{{unix.SIOCSIFADDR, addr[:]}, {unix.SIOCSIFNETMASK, mask[:]}} {
			ifr, err := unix.NewIfreq(i.Name)
			if err != nil {
				return fmt.Errorf("interface %q: %w", i.Name, err)
			}
			if err := ifr.SetInet4Addr(set.addr); err != nil {
				return fmt.Errorf("interface %s: %w", i.Name, err)
			}
			if err := unix.IoctlIfreq(fd, set.req, ifr); err != nil {
				return fmt.Errorf("interface %s: address %s: %w", i.Name, i.Address, err)
			}
		}
	}
	if err := ifUp(fd, i.Name); err != nil {
		return err
	}
	if i.Gateway != "" {
		gw, err := netip.ParseAddr(i.Gateway)
		if err != nil || !gw.Is4() {
			return fmt.Errorf("interface %s: gateway %q is no IPv4 address", i.Name, i.Gateway)
		}
		if err := addDefaultRoute(gw.As4()); err != nil {
			return fmt.Errorf("interface %s: gateway %s: %w", i.Name, i.Gateway, err)
		}
	}
	return nil
}

// addDefaultRoute adds the route 0.0.0.0/0 via gw with one RTM_NEWROUTE
// message (rtnetlink(7)); the kernel finds the interface by the gateway.
func addDefaultRoute(gw [4]byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	const size = unix.SizeofNlMsghdr + unix.SizeofRtMsg + 8
	b := make([]byte, size)
	le := binary.LittleEndian
	le.PutUint32(b[0:], size)
	le.PutUint16(b[4:], unix.RTM_NEWROUTE)
	le.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	r := b[unix.SizeofNlMsghdr:]
	r[0], r[4], r[5], r[6], r[7] = unix.AF_INET, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST
	a := r[unix.SizeofRtMsg:]
	le.PutUint16(a[0:], 8)
	le.PutUint16(a[2:], unix.RTA_GATEWAY)
	copy(a[4:], gw[:])
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	reply := make([]byte, 4096)
	n, err := unix.Read(fd, reply)
	if err != nil {
		return os.NewSyscallError("read", err)
	}
	if n < unix.SizeofNlMsghdr+4 || le.Uint16(reply[4:]) != unix.NLMSG_ERROR {
		return errors.New("unexpected answer from rtnetlink")
	}
	if e := int32(le.Uint32(reply[unix.SizeofNlMsghdr:])); e != 0 {
		return unix.Errno(-e)
	}
	return nil
}
