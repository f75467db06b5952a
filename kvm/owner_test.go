package kvm_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/kvm/bare"
	"github.com/hvpost/hvpost/kvm/kvmtest"
)

// Guests that Run does not leave, or leaves all the time.
var (
	spin  = []byte{0xEB, 0xFE}             // jmp $
	sleep = []byte{0xF4, 0xEB, 0xFD}       // hlt, for ever with the interrupt chips
	storm = []byte{0xE6, 0x80, 0xEB, 0xFC} // out 0x80, al, for ever
)

// An owner runs a processor until it is told to stop, and counts what
// happens. Its goroutine is the only one that touches the VCPU.
type owner struct {
	v    *kvm.VCPU
	tid  int
	stop atomic.Bool
	seq  atomic.Uint64 // raised before a kick
	done chan struct{}
	err  error // valid once done is closed

	mu    sync.Mutex
	cond  sync.Cond
	acked uint64 // seq as seen after an ErrKicked
	kicks uint64 // ErrKicked returned
	exits uint64 // other returns
}

// own starts the goroutine of v; it is stopped and joined with the test.
func own(t testing.TB, v *kvm.VCPU) *owner {
	t.Helper()
	o := &owner{v: v, done: make(chan struct{})}
	o.cond.L = &o.mu
	ready := make(chan error)
	go func() {
		defer close(o.done)
		if err := v.LockThread(); err != nil {
			ready <- err
			return
		}
		o.tid = unix.Gettid()
		ready <- nil
		o.err = errors.Join(o.loop(), v.UnlockThread())
	}()
	must(t, <-ready)
	t.Cleanup(func() {
		o.stop.Store(true)
		o.v.Kick()
		select {
		case <-o.done:
			if o.err != nil {
				t.Error(o.err)
			}
		case <-time.After(20 * time.Second):
			panic("the kick that ends the test is lost")
		}
	})
	return o
}

func (o *owner) loop() error {
	for {
		_, err := o.v.Run()
		o.mu.Lock()
		switch {
		case err == nil:
			o.exits++
			o.cond.Broadcast()
		case errors.Is(err, kvm.ErrKicked):
			o.kicks++
			o.acked = o.seq.Load()
			o.cond.Broadcast()
		default:
			o.mu.Unlock()
			return err
		}
		o.mu.Unlock()
		if o.stop.Load() {
			return nil
		}
	}
}

// kick kicks and waits until the owner has taken that kick or a later one.
func (o *owner) kick() {
	n := o.seq.Add(1)
	o.v.Kick()
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.acked < n {
		o.cond.Wait()
	}
}

// progress waits until the guest, kicked before, comes out by itself again.
func (o *owner) progress() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for before := o.exits; o.exits == before; {
		o.cond.Wait()
	}
}

func (o *owner) counts() (kicks, exits uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.kicks, o.exits
}

// within fails the test if f takes longer than d: a lost kick is a hang.
func within(t *testing.T, d time.Duration, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatal("hangs: a kick is lost")
	}
}

func ownGuest(t testing.TB, code []byte) *owner {
	t.Helper()
	g := kvmtest.Unowned(t, bare.Config{IRQChip: true})
	must(t, g.Long(code...))
	return own(t, g.VCPU)
}
