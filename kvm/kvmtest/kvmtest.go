package kvmtest

import (
	"errors"
	"os"
	"testing"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/kvm/bare"
)

// NeedEnv, set to 1, makes Need fail where it would skip.
const NeedEnv = "HVPOST_NEED_KVM"

// Need opens /dev/kvm for the time of the test. Without a device that can be
// opened it skips the test and says why, or fails it if NeedEnv is 1. Any
// KVM will do, one that interprets its guests too.
func Need(t testing.TB) *kvm.System {
	t.Helper()
	sys, err := kvm.Open(kvm.DefaultPath)
	if err != nil {
		absent := errors.Is(err, kvm.ErrMissing) || errors.Is(err, kvm.ErrDenied) || errors.Is(err, kvm.ErrNoHardware)
		if !absent || os.Getenv(NeedEnv) == "1" {
			t.Fatalf("a KVM device is needed here: %v", err)
		}
		t.Skipf("SKIPPED, NOT TESTED: no KVM device: %v (%s=1 makes this a failure)", err, NeedEnv)
	}
	t.Cleanup(func() { sys.Close() })
	return sys
}

// Guest builds a bare guest for the time of the test and makes the test's
// goroutine the owner of its first processor.
func Guest(t testing.TB, c bare.Config) *bare.Guest {
	t.Helper()
	g := Unowned(t, c)
	if err := g.VCPU.LockThread(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.VCPU.UnlockThread(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// Unowned builds a bare guest for the time of the test; the test's own
// goroutines run its processors.
func Unowned(t testing.TB, c bare.Config) *bare.Guest {
	t.Helper()
	g, err := bare.New(Need(t), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}
