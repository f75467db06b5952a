package kvm_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/kvm/bare"
	"github.com/hvpost/hvpost/kvm/kvmtest"
)

// TestOpenErrors makes the kernel refuse in each way and checks that the
// error is of its kind, names the path, keeps the errno and is one line.
func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	closed := filepath.Join(dir, "closed")
	must(t, os.WriteFile(closed, nil, 0))
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	must(t, err)
	defer l.Close()
	for _, c := range []struct {
		path  string
		kind  error
		errno unix.Errno
	}{
		{filepath.Join(dir, "none"), kvm.ErrMissing, unix.ENOENT},
		{filepath.Join(closed, "below"), kvm.ErrMissing, unix.ENOTDIR},
		{closed, kvm.ErrDenied, unix.EACCES},
		{socket, kvm.ErrNoHardware, unix.ENXIO}, // what a device without a driver says, too
		{"/dev/null", kvm.ErrNotKVM, unix.ENOTTY},
		{dir, kvm.ErrNotKVM, unix.EISDIR},
	} {
		if c.kind == kvm.ErrDenied && os.Geteuid() == 0 {
			must(t, os.Chmod(dir, 0o755))
			err = openAsNobody(t, c.path)
		} else {
			_, err = kvm.Open(c.path)
		}
		if !errors.Is(err, c.kind) || !errors.Is(err, c.errno) ||
			!strings.Contains(err.Error(), c.path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %v with %v", c.path, err, c.kind, c.errno)
		}
		for _, other := range []error{kvm.ErrMissing, kvm.ErrDenied, kvm.ErrNoHardware, kvm.ErrNotKVM, kvm.ErrAPIVersion} {
			if other != c.kind && errors.Is(err, other) {
				t.Errorf("%s: %v is also %v", c.path, err, other)
			}
		}
	}
}

// openAsNobody opens path without root's rights, on a thread that ends with
// its goroutine.
func openAsNobody(t *testing.T, path string) error {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := unix.Setfsuid(65534); err != nil {
			result <- err
			return
		}
		_, err := kvm.Open(path)
		result <- err
	}()
	return <-result
}

func TestSystem(t *testing.T) {
	sys := kvmtest.Need(t)
	if v, err := sys.APIVersion(); err != nil || v != 12 {
		t.Errorf("version %d, %v", v, err)
	}
	if n := sys.VCPUMmapSize(); n < 4096 || n%4096 != 0 {
		t.Errorf("run area of %d bytes", n)
	}
	if sys.Check(kvm.CapUserMemory) == 0 || sys.Check(kvm.CapImmediateExit) == 0 || sys.Check(kvm.Cap(60000)) != 0 {
		t.Errorf("checks: %d, %d, %d", sys.Check(kvm.CapUserMemory), sys.Check(kvm.CapImmediateExit), sys.Check(kvm.Cap(60000)))
	}
	if sys.Path() != kvm.DefaultPath {
		t.Errorf("path %q", sys.Path())
	}
	vm, err := sys.CreateVM()
	must(t, err)
	if vm.Check(kvm.CapSyncRegs) == 0 {
		t.Error("the VM has no synchronised registers")
	}
	must(t, vm.Close())
	must(t, vm.Close())
	must(t, sys.Close())
	must(t, sys.Close())
	if _, err := sys.CreateVM(); !errors.Is(err, unix.EBADF) {
		t.Errorf("closed system: %v", err)
	}
}

// TestNoLeaks: a guest leaves neither files nor mappings behind.
func TestNoLeaks(t *testing.T) {
	sys := kvmtest.Need(t)
	open := func() (fds, maps int) {
		t.Helper()
		e, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		m, err := os.ReadFile("/proc/self/maps")
		must(t, err)
		return len(e), strings.Count(string(m), "kvm-vcpu")
	}
	fds, maps := open()
	for range 20 {
		g, err := bare.New(sys, bare.Config{VCPUs: 2})
		must(t, err)
		must(t, g.Close())
	}
	if f, m := open(); f != fds || m != maps {
		t.Errorf("%d files and %d run areas, before %d and %d", f, m, fds, maps)
	}
	// A guest that cannot be built leaves nothing either.
	if _, err := bare.New(sys, bare.Config{Deny: []kvm.MSRRange{{}}}); err == nil {
		t.Error("an empty MSR range taken")
	}
	if f, m := open(); f != fds || m != maps {
		t.Errorf("after a failure %d files and %d run areas, before %d and %d", f, m, fds, maps)
	}
}
