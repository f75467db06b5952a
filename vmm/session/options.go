package session

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/hvpost/hvpost/synic"
)

// Limits of a machine.
const (
	// MinMemory is the least RAM that a Debian kernel with the agent's image
	// boots in.
	MinMemory = 64 << 20
	// MaxMemory is what 40 bits of guest physical address space hold beside
	// the holes.
	MaxMemory = 512 << 30
	// MaxCPUs is the most virtual processors of a machine.
	MaxCPUs = synic.MaxVPs

	// DefaultMemory and DefaultCPUs are what a test guest gets unasked.
	DefaultMemory = 512 << 20
	DefaultCPUs   = 1

	// DefaultBootTimeout bounds the time from the first guest instruction to
	// the agent's hello. It is generous: a slow host must not fail a good
	// kernel.
	DefaultBootTimeout = 120 * time.Second
)

// Options say what to run and in what. The zero value of a field is its
// default.
type Options struct {
	Kernel  string   // spec for kernel.Resolve; "" is its default
	Modules []string // modules to load besides the VMBus ones
	Initrd  string   // a file appended to the agent's image
	Append  []string // added to the default kernel command line
	Cmdline string   // replaces the default kernel command line
	Boot    string   // auto, linux64, bzimage or pvh

	Memory uint64 // bytes
	CPUs   int

	Argv  []string // none: an interactive shell
	Env   []string // KEY=VALUE
	Dir   string   // working directory in the guest; "" is /root
	Files []string // host[:guest]

	Stdin  io.Reader // nil: empty
	Stdout io.Writer // nil: discarded
	Stderr io.Writer // nil: discarded
	TTY    *TTY      // set: the command gets a terminal

	Console    io.Writer // the kernel log as it comes; nil: only kept
	ConsoleLog string    // a file for it
	Verbose    bool      // do not quiet the kernel

	KVM           string // path of the device; "" is /dev/kvm
	Emulated      bool   // this host is an emulated one; for the result
	NoVMBus       bool
	VMBusMaxMajor uint16 // 0: the newest
	VMBusMaxMinor uint16

	Timeout     time.Duration // from the first guest instruction; 0: none
	BootTimeout time.Duration // until the agent says hello; 0: DefaultBootTimeout

	// Grace is how long the guest gets to shut down when the context of Run
	// ends, before it is stopped; 0: DefaultGrace.
	Grace time.Duration

	// Version is this program's, which the guest sees as its firmware's.
	Version string

	// Self is the hvpost binary that becomes the guest's init; "" is the
	// running one.
	Self string

	// Started is the process's start, from which the boot phases count; zero
	// is the call of Prepare.
	Started time.Time

	// Logf takes messages for the user, one line each; nil drops them.
	Logf func(format string, args ...any)
}

// A TTY is the terminal of an interactive command.
type TTY struct {
	Rows, Cols uint16
	Resize     <-chan [2]uint16 // rows, columns
}

// ParseSize reads a size in bytes: a number with the suffix K, M, G or T, in
// powers of 1024, optionally followed by B or iB. A bare number counts in
// MiB, as users of -m expect.
func ParseSize(s string) (uint64, error) {
	bad := func() (uint64, error) {
		return 0, fmt.Errorf("%q is not a size; write 512M or 2G", s)
	}
	num := strings.TrimSpace(s)
	t := strings.ToUpper(num)
	t = strings.TrimSuffix(strings.TrimSuffix(t, "IB"), "B")
	shift := uint(20)
	if t != "" {
		if i := strings.IndexByte("KMGT", t[len(t)-1]); i >= 0 {
			shift = 10 * uint(i+1)
			t = t[:len(t)-1]
		} else if len(t) != len(num) {
			return bad() // "512B"
		}
	}
	n, err := strconv.ParseUint(t, 10, 64)
	if err != nil || n > math.MaxUint64>>shift {
		return bad()
	}
	return n << shift, nil
}

// FormatSize is the inverse of ParseSize for whole MiB.
func FormatSize(n uint64) string {
	if n%(1<<30) == 0 {
		return fmt.Sprintf("%dG", n>>30)
	}
	return fmt.Sprintf("%dM", n>>20)
}

// ParseVMBusVersion reads a version as "5.3" and checks that it is one that
// the server speaks.
func ParseVMBusVersion(s string) (major, minor uint16, err error) {
	for _, v := range vmbusVersions {
		if s == fmt.Sprintf("%d.%d", v[0], v[1]) {
			return v[0], v[1], nil
		}
	}
	var known []string
	for _, v := range vmbusVersions {
		known = append(known, fmt.Sprintf("%d.%d", v[0], v[1]))
	}
	return 0, 0, fmt.Errorf("%q is not a VMBus version; known: %s", s, strings.Join(known, ", "))
}

var vmbusVersions = [][2]uint16{{2, 4}, {3, 0}, {4, 0}, {4, 1}, {5, 0}, {5, 1}, {5, 2}, {5, 3}}

// check fills in defaults and refuses what cannot be.
func (o *Options) check() error {
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	if o.CPUs == 0 {
		o.CPUs = DefaultCPUs
	}
	if o.BootTimeout == 0 {
		o.BootTimeout = DefaultBootTimeout
	}
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	if o.Boot == "" {
		o.Boot = "auto"
	}
	switch {
	case o.Memory < MinMemory:
		return fmt.Errorf("memory of %d MiB is too small; a guest needs at least %d MiB", o.Memory>>20, MinMemory>>20)
	case o.Memory > MaxMemory:
		return fmt.Errorf("memory of %d GiB is too much; at most %d GiB", o.Memory>>30, uint64(MaxMemory)>>30)
	case o.Memory%(1<<20) != 0:
		return fmt.Errorf("memory of %d bytes is not a whole number of MiB", o.Memory)
	case o.CPUs < 1 || o.CPUs > MaxCPUs:
		return fmt.Errorf("%d CPUs: a guest has 1 to %d", o.CPUs, MaxCPUs)
	case o.Timeout < 0:
		return fmt.Errorf("timeout of %v: cannot be negative", o.Timeout)
	case o.BootTimeout < 0:
		return fmt.Errorf("boot timeout of %v: cannot be negative", o.BootTimeout)
	}
	switch o.Boot {
	case "auto", "linux64", "bzimage", "pvh":
	default:
		return fmt.Errorf("unknown boot protocol %q; known: auto, linux64, bzimage, pvh", o.Boot)
	}
	return nil
}
