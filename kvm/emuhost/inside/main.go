package inside

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm/emuhost/wire"
)

const (
	// PortName is the name of the virtio-serial port that carries the commands.
	PortName = "hvpost.link"

	// XferTag is the 9p mount tag of the writable share.
	XferTag = "xfer"

	// ModuleDir is where the initramfs keeps modules; their names sort in loading order.
	ModuleDir = "/modules"

	// Role is the word on the kernel command line that makes a PID 1 the emulated host's.
	Role = "hvpost.role=emuhost"
)

// ViewTag is the 9p mount tag of the i-th mount of the host's root.
func ViewTag(i int) string { return fmt.Sprintf("root%d", i) }

// IsRole reports whether this process is PID 1 of an emulated host. It mounts /proc when it is PID 1 of anything
// that has none yet, for there is no other way to read the command line.
func IsRole() bool {
	if os.Getpid() != 1 {
		return false
	}
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		os.Mkdir("/proc", 0o555) // an error shows in the mount
		if unix.Mount("proc", "/proc", "proc", 0, "") != nil {
			return false
		}
		if text, err = os.ReadFile("/proc/cmdline"); err != nil {
			return false
		}
	}
	for _, w := range strings.Fields(string(text)) {
		if w == Role {
			return true
		}
	}
	return false
}

// Main runs PID 1 and never returns. When it cannot go on it says why on the console and over the link, and powers off.
func Main() {
	err := run()
	if err != nil {
		fmt.Printf("hvpost: emulated host: %v\n", err)
	}
	powerOff()
}

func powerOff() {
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	// PID 1 must not end: the kernel would panic, which also ends the machine but hides this line.
	fmt.Printf("hvpost: emulated host: power off: %v\n", err)
	select {}
}

// run boots, serves commands until the link ends or asks for the end, and returns why it cannot go on, or nil.
func run() error {
	if err := mountKernelFS(); err != nil {
		return err
	}
	// In some kernels the port's drivers are modules too. What fails here is told on the console only, where the
	// daemon finds it; what fails later, over the link.
	if err := loadModules(ModuleDir); err != nil {
		return err
	}
	port, err := openPort(PortName)
	if err != nil {
		return err
	}
	defer port.Close()
	r, w := wire.NewReader(port), wire.NewWriter(port)
	// Speaking first makes the daemon's clock fresh when its answer comes.
	if err := w.Write(wire.JSON(0, wire.TypeHello, wire.Hello{Version: wire.Version})); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	f, err := r.Next()
	if err != nil {
		return fmt.Errorf("link: %w", err)
	}
	var h wire.Hello
	if f.Type != wire.TypeHello {
		return fmt.Errorf("link: %v instead of hello", f.Type)
	}
	if err := f.Decode(&h); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	s, kernel, err := boot(h, w)
	answer := wire.Hello{Version: wire.Version, Kernel: kernel}
	if err != nil {
		answer.Error = wire.Cut(err.Error())
	}
	if e := w.Write(wire.JSON(0, wire.TypeHello, answer)); e != nil {
		return errors.Join(err, fmt.Errorf("link: %w", e))
	}
	if err != nil {
		// The daemon ends the machine once it has read why; ending it here could lose the answer.
		for err2 := error(nil); err2 == nil; {
			_, err2 = r.Next()
		}
		return err
	}
	err = s.serve(r)
	if errors.Is(err, io.EOF) {
		return nil // the daemon is gone, and so is everyone who could want something
	}
	return err
}

// boot makes the machine ready for commands.
func boot(h wire.Hello, w *wire.Writer) (*server, string, error) {
	if h.Version != wire.Version {
		return nil, "", fmt.Errorf("protocol version %d, want %d", h.Version, wire.Version)
	}
	if h.Views < 1 || !filepath.IsAbs(h.Xfer) {
		return nil, "", fmt.Errorf("hello without views or exchange directory")
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, "", fmt.Errorf("uname: %w", err)
	}
	kernel := unix.ByteSliceToString(u.Release[:])
	if err := unix.Sethostname([]byte("hvpost-" + h.Name)); err != nil {
		return nil, "", fmt.Errorf("set host name: %w", err)
	}
	// The emulated clock chip counts whole seconds; programs that compare file times want better.
	tv := unix.NsecToTimeval(h.Clock)
	if err := unix.Settimeofday(&tv); err != nil {
		return nil, "", fmt.Errorf("set clock: %w", err)
	}
	if err := os.Chmod("/dev/kvm", 0o666); err != nil {
		return nil, "", fmt.Errorf("no /dev/kvm after loading kvm_amd: %w", err)
	}
	if err := mountShared(); err != nil {
		return nil, "", err
	}
	if err := loopback(); err != nil {
		return nil, "", err
	}
	if err := hugePages("/sys/kernel/mm/transparent_hugepage"); err != nil {
		return nil, "", err
	}
	// As systemd does: a soft limit that select(2) can live with, a hard one nobody meets.
	lim := syscall.Rlimit{Cur: 1024, Max: 1 << 20}
	if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return nil, "", fmt.Errorf("raise RLIMIT_NOFILE: %w", err)
	}
	lim = syscall.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY} // nobody else needs this memory
	if err := syscall.Setrlimit(unix.RLIMIT_MEMLOCK, &lim); err != nil {
		return nil, "", fmt.Errorf("raise RLIMIT_MEMLOCK: %w", err)
	}
	return newServer(w, h.Views, h.Xfer), kernel, nil
}

// loadModules loads every file of dir in the order of the names.
func loadModules(dir string) error {
	es, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("modules: %w", err)
	}
	for _, e := range es {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return fmt.Errorf("modules: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("module %s: %w", e.Name(), err)
		}
	}
	// The initramfs lives in memory; the modules are in the kernel now.
	return os.RemoveAll(dir)
}

// openPort opens the virtio-serial port of a name. The ports appear when the device has answered the driver, shortly
// after the driver is there; uevents tell.
func openPort(name string) (*os.File, error) {
	uev, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	defer unix.Close(uev)
	if err := unix.Bind(uev, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	wait := unix.NsecToTimeval(int64(10 * time.Second)) // a port that comes at all comes within milliseconds
	if err := unix.SetsockoptTimeval(uev, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	buf := make([]byte, 8<<10)
	for {
		// Look after subscribing, so that no port can appear unseen between.
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			text, err := os.ReadFile(n)
			if err != nil || strings.TrimSpace(string(text)) != name {
				continue
			}
			dev := "/dev/" + filepath.Base(filepath.Dir(n))
			f, err := os.OpenFile(dev, os.O_RDWR, 0)
			if err != nil {
				return nil, fmt.Errorf("port %s: %w", name, err)
			}
			return f, nil
		}
		if _, _, err := unix.Recvfrom(uev, buf, 0); err != nil && err != unix.EINTR && err != unix.ENOBUFS {
			return nil, fmt.Errorf("no virtio-serial port %s: %w", name, err)
		}
	}
}

// hugePages lets shared memory, as of memfds, have huge pages on request as private memory has, and stops the search
// for more: on the one CPU khugepaged gets in everyone's way, and with huge pages under guests it has been seen to hang.
func hugePages(dir string) error {
	const never = "4294967295" // milliseconds, 49 days
	for _, f := range []struct{ name, value string }{
		{"khugepaged/scan_sleep_millisecs", never},
		{"khugepaged/alloc_sleep_millisecs", never},
		{"shmem_enabled", "advise"},
	} {
		err := os.WriteFile(filepath.Join(dir, f.name), []byte(f.value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without huge pages does well too
			return fmt.Errorf("huge pages: %w", err)
		}
	}
	return nil
}

func loopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}
