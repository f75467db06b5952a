package emuhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"time"
)

// Defaults of Config.
const (
	DefaultName        = "default"
	DefaultMemoryMiB   = 4096
	DefaultIdleTimeout = 30 * time.Minute
	DefaultBootTimeout = 3 * time.Minute // it takes 3 s; half a minute has been seen on a machine with a load of 10
	DefaultQEMU        = "qemu-system-x86_64"
)

// Views is how many commands run at the same time in one emulated host; more wait for their turn. Each has a 9p
// device of its own, and four PCI slots of eight functions are plenty for one CPU.
const Views = 32

// Modules names the modules the emulated host can need, in loading order. KernelFiles.Modules must hold a file for each
// that the kernel has as a module; others are built in, or of another version. (Debian's 6.12 has those from irqbypass on but
// fscache, 6.1 all.) A boot that misses one says so.
var Modules = []string{
	"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_console",
	"irqbypass", "ccp", "kvm", "kvm-amd", "netfs", "fscache", "9pnet", "9pnet_virtio", "9p", "overlay",
}

// KernelFiles is a kernel for the emulated host: Linux 6.1 or later for x86-64 with KVM for AMD, 9p over virtio, and
// overlayfs. (Before 6.9, SIGINT and SIGQUIT reach a command's first process only.)
type KernelFiles struct {
	Vmlinuz string   // bzImage, or the unpacked vmlinux with a PVH note, which starts about 1.2 s sooner
	Modules []string // in loading order; .ko, .ko.xz, .ko.zst or .ko.gz
}

// Config describes an emulated host. The zero value of every field but Kernel has a default.
type Config struct {
	Name        string        // DefaultName; hosts of different names can run side by side
	MemoryMiB   int           // DefaultMemoryMiB; commands, their writable layers and their guests share it
	IdleTimeout time.Duration // DefaultIdleTimeout; time without commands after which the host ends; negative: never
	BootTimeout time.Duration // DefaultBootTimeout
	QEMU        string        // DefaultQEMU; name or path of the program
	RunDir      string        // DefaultRunDir()
	Append      string        // more words for the kernel command line

	// Kernel finds the kernel, and may take its time (download it). It is called only when a host must be started.
	Kernel func(context.Context) (KernelFiles, error)

	// Self is the program that becomes the daemon and PID 1 inside: the running one by default. Its main must call
	// Intercept. ServeArgs are its arguments as a daemon, seen by people who list processes: "host serve".
	Self      string
	ServeArgs []string

	// Reason says why an emulated host is needed, for the line that Logf gets when a command is about to run in
	// one. Logf may be nil; it never gets more than one line per Up.
	Reason string
	Logf   func(format string, args ...any)
}

var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,39}$`)

// CheckName says whether name can name an emulated host.
func CheckName(name string) error {
	if !nameRE.MatchString(name) {
		return fmt.Errorf("emulated host name %q: want 1 to 40 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit", name)
	}
	return nil
}

// withDefaults returns c with its empty fields filled in, or what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if err := CheckName(c.Name); err != nil {
		return c, err
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = DefaultMemoryMiB
	}
	if c.MemoryMiB < 512 || c.MemoryMiB > 1<<20 {
		return c, fmt.Errorf("emulated host memory of %d MiB: want at least 512", c.MemoryMiB)
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = DefaultIdleTimeout
	}
	if c.BootTimeout == 0 {
		c.BootTimeout = DefaultBootTimeout
	}
	if c.QEMU == "" {
		c.QEMU = DefaultQEMU
	}
	if c.RunDir == "" {
		dir, err := DefaultRunDir()
		if err != nil {
			return c, err
		}
		c.RunDir = dir
	}
	if c.Self == "" {
		self, err := os.Executable()
		if err != nil {
			return c, fmt.Errorf("emulated host: find the running program: %w", err)
		}
		c.Self = self
	}
	if c.ServeArgs == nil {
		c.ServeArgs = []string{"host", "serve"}
	}
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
	return c, nil
}

// Errors that callers tell apart.
var (
	// ErrNotUp means that no emulated host of the name runs.
	ErrNotUp = errors.New("not running")

	// ErrInside means that this process is in an emulated host already; there is a /dev/kvm.
	ErrInside = errors.New("already inside an emulated host")
)

// findQEMU returns the path of QEMU.
func findQEMU(name string) (string, error) {
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("emulated host: %s not found; install it with: apt-get install qemu-system-x86", name)
	}
	return p, nil
}

// insideVar is set in the environment of every command inside, to the instance's name.
const insideVar = "HVPOST_EMUHOST"

// Inside returns the name of the emulated host this process runs in, or "".
func Inside() string { return os.Getenv(insideVar) }
