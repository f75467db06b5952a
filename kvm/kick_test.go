package kvm_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/kvm/bare"
	"github.com/hvpost/hvpost/kvm/kvmtest"
)

// TestKickStress: kicks from several goroutines, 10000 in all, each waited
// for. One that is lost leaves its goroutine waiting.
func TestKickStress(t *testing.T) {
	for _, c := range []struct {
		name  string
		code  []byte
		kicks int // of each of four goroutines
	}{{"spin", spin, 250}, {"sleep", sleep, 1000}, {"storm", storm, 1250}} {
		t.Run(c.name, func(t *testing.T) {
			if runtime.GOMAXPROCS(0) == 1 {
				c.kicks /= 10 // the owner gives its turn away only every 10 ms
			}
			o := ownGuest(t, c.code)
			within(t, 60*time.Second, func() {
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						for range c.kicks {
							o.kick()
							// Another phase of the owner's loop each time.
							for until := time.Now().Add(time.Duration(rand.IntN(20000))); time.Now().Before(until); {
							}
						}
					})
				}
				wg.Wait()
			})
			if c.name == "storm" {
				// No signal is left over to keep KVM_RUN from running.
				within(t, 20*time.Second, o.progress)
			}
			kicks, exits := o.counts()
			if kicks == 0 || kicks > uint64(4*c.kicks) {
				t.Errorf("%d kicks taken of %d", kicks, 4*c.kicks)
			}
			if c.name != "storm" && exits != 0 {
				t.Errorf("%d exits that are no kicks", exits)
			}
			t.Logf("%d kicks taken for %d given, %d exits", kicks, 4*c.kicks, exits)
		})
	}
}

// TestKickOneByOne: without concurrency every kick is taken exactly once.
func TestKickOneByOne(t *testing.T) {
	o := ownGuest(t, sleep)
	within(t, 60*time.Second, func() {
		for range 1000 {
			o.kick()
		}
	})
	if kicks, exits := o.counts(); kicks != 1000 || exits != 0 {
		t.Errorf("%d kicks, %d exits of 1000 kicks", kicks, exits)
	}
}

// TestKickBeforeRun: a kick outside Run waits for the next one, whoever runs.
func TestKickBeforeRun(t *testing.T) {
	g := kvmtest.Unowned(t, bare.Config{})
	must(t, g.Long(spin...))
	g.VCPU.Kick() // before there is a thread
	g.VCPU.Kick()
	for range 2 {
		must(t, g.VCPU.LockThread())
		if _, err := g.VCPU.Run(); !errors.Is(err, kvm.ErrKicked) {
			t.Fatalf("%v", err)
		}
		g.VCPU.Kick() // inside the thread, outside Run
		must(t, g.VCPU.UnlockThread())
	}
}

// TestKickCompletesExit: a kick between an exit and the next Run does not
// lose what the exit asked for.
func TestKickCompletesExit(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(
		0xE4, 0x60, // in al, 0x60
		0xE6, 0x61, // out 0x61, al
		0xF4,
	))
	e := run(t, g.VCPU, kvm.ExitIO)
	e.IO.Data[0] = 0x5A
	g.VCPU.Kick()
	if _, err := g.VCPU.Run(); !errors.Is(err, kvm.ErrKicked) {
		t.Fatalf("%v", err)
	}
	if r, err := g.VCPU.Regs(); err != nil || r.RAX&0xFF != 0x5A || r.RIP != bare.Code+2 {
		t.Errorf("RAX %#x, RIP %#x, %v", r.RAX, r.RIP, err)
	}
	if e := run(t, g.VCPU, kvm.ExitIO); e.IO.Port != 0x61 || e.IO.Data[0] != 0x5A {
		t.Errorf("%v with % x", e, e.IO.Data)
	}
}

// TestRegressCompleteExit: setting RIP anew to the out that has just exited
// made KVM skip its first bytes at the next run.
func TestRegressCompleteExit(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	v := g.VCPU
	must(t, v.CompleteExit())         // nothing to do yet
	must(t, g.Long(0xE6, 0x80, 0xF4)) // out 0x80, al
	for range 3 {
		port(t, v, 0x80)
		must(t, v.CompleteExit())
		r, err := v.Regs()
		must(t, err)
		if r.RIP != bare.Code+2 {
			t.Fatalf("RIP %#x after completion", r.RIP)
		}
		r.RIP = bare.Code
		must(t, v.SetRegs(&r))
	}
	// The data of a read arrives, and a kick before or after is not lost.
	must(t, g.Long(0xE4, 0x60, 0xF4)) // in al, 0x60
	e := run(t, v, kvm.ExitIO)
	e.IO.Data[0] = 0x77
	v.Kick()
	must(t, v.CompleteExit())
	must(t, v.CompleteExit())
	if r, err := v.Regs(); err != nil || r.RAX&0xFF != 0x77 {
		t.Errorf("RAX %#x, %v", r.RAX, err)
	}
	if _, err := v.Run(); !errors.Is(err, kvm.ErrKicked) {
		t.Errorf("the kick is lost: %v", err)
	}
	run(t, v, kvm.ExitHLT)
}

// TestCompleteExitUnderKicks: completing exits all the time takes no kick.
func TestCompleteExitUnderKicks(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(storm...))
	rounds := 2000
	if runtime.GOMAXPROCS(0) == 1 {
		rounds = 20
	}
	taken, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for range rounds {
			g.VCPU.Kick()
			<-taken
		}
	}()
	deadline := time.Now().Add(60 * time.Second)
	for n := 0; n < rounds; {
		if time.Now().After(deadline) {
			t.Fatalf("kick %d is lost", n)
		}
		_, err := g.VCPU.Run()
		if errors.Is(err, kvm.ErrKicked) {
			n++
			taken <- struct{}{}
		} else {
			must(t, err)
			must(t, g.VCPU.CompleteExit())
		}
	}
	<-done
}

func TestKickAfterClose(t *testing.T) {
	g := kvmtest.Unowned(t, bare.Config{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					g.VCPU.Kick()
				}
			}
		})
	}
	runtime.Gosched()
	must(t, g.VCPU.Close())
	g.VCPU.Kick()
	close(stop)
	wg.Wait()
	must(t, g.VCPU.Close())
}

// TestPreemptionStaysOutside: the runtime's preemption signal, sent by the
// garbage collector and by hand, never ends a Run.
func TestPreemptionStaysOutside(t *testing.T) {
	for name, code := range map[string][]byte{"spin": spin, "sleep": sleep} {
		t.Run(name, func(t *testing.T) {
			o := ownGuest(t, code)
			o.kick() // it is running now
			before, _ := o.counts()
			for range 50 {
				must(t, unix.Tgkill(unix.Getpid(), o.tid, unix.SIGURG))
				runtime.GC()
			}
			if kicks, exits := o.counts(); kicks != before || exits != 0 {
				t.Errorf("%d kicks and %d exits without a kick", kicks-before, exits)
			}
			within(t, 20*time.Second, o.kick)
		})
	}
}

// TestMaskInsideRun: while the guest runs, the thread blocks all signals but
// those that may end KVM_RUN. The kernel does not let 9 and 19 be blocked.
func TestMaskInsideRun(t *testing.T) {
	o := ownGuest(t, sleep)
	o.kick()
	const want = ^uint64(1<<(9-1) | 1<<(19-1) | 1<<(unix.SIGIO-1) | 1<<(32-1) | 1<<(33-1) | 1<<(34-1))
	var got uint64
	// The owner is on its way into KVM_RUN; only the kernel knows when.
	for deadline := time.Now().Add(10 * time.Second); got != want && time.Now().Before(deadline); runtime.Gosched() {
		status, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", o.tid))
		must(t, err)
		_, rest, _ := strings.Cut(string(status), "SigBlk:\t")
		got, err = strconv.ParseUint(strings.SplitN(rest, "\n", 2)[0], 16, 64)
		must(t, err)
	}
	if got != want {
		t.Errorf("mask %#x, want %#x", got, uint64(want))
	}
}

// TestSignalsThatMustPass: the runtime stops the world for a system call on
// every thread by a signal that KVM_RUN may not block; Run goes on after it.
func TestSignalsThatMustPass(t *testing.T) {
	o := ownGuest(t, sleep)
	o.kick()
	before, _ := o.counts()
	within(t, 20*time.Second, func() {
		for range 20 {
			if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno != 0 && errno != unix.ENOTSUP {
				t.Errorf("on all threads: %v", errno)
			}
		}
	})
	if kicks, exits := o.counts(); kicks != before || exits != 0 {
		t.Errorf("%d kicks and %d exits without a kick", kicks-before, exits)
	}
	within(t, 20*time.Second, o.kick)
}

// TestStrayKickSignal: the kick signal without a kick, to the thread or to
// the process, ends neither Run nor the process, even if somebody asked the
// runtime for it or had it ignored.
func TestStrayKickSignal(t *testing.T) {
	o := ownGuest(t, sleep)
	o.kick()
	before, _ := o.counts()
	stray := func() {
		t.Helper()
		for range 50 {
			must(t, unix.Tgkill(unix.Getpid(), o.tid, unix.SIGIO))
			must(t, unix.Kill(unix.Getpid(), unix.SIGIO))
		}
		if kicks, exits := o.counts(); kicks != before || exits != 0 {
			t.Errorf("%d kicks and %d exits without a kick", kicks-before, exits)
		}
		within(t, 20*time.Second, o.kick)
		before++
	}
	stray()
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGIO)
	stray()
	signal.Stop(c)
	signal.Ignore(unix.SIGIO)
	defer signal.Reset(unix.SIGIO)
	stray()
}

// TestStopAndContinue: stopping the process ends KVM_RUN, which nobody may
// see.
func TestStopAndContinue(t *testing.T) {
	o := ownGuest(t, sleep)
	o.kick()
	before, _ := o.counts()
	pid := unix.Getpid()
	cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf("kill -STOP %d; sleep 0.05; kill -CONT %d", pid, pid))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if kicks, exits := o.counts(); kicks != before || exits != 0 {
		t.Errorf("%d kicks and %d exits without a kick", kicks-before, exits)
	}
	within(t, 20*time.Second, o.kick)
}

// TestSignalMaskRestored: after UnlockThread the thread is as it was.
func TestSignalMaskRestored(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mask := func() (s unix.Sigset_t) {
		t.Helper()
		must(t, unix.PthreadSigmask(unix.SIG_BLOCK, nil, &s))
		return s
	}
	g := kvmtest.Unowned(t, bare.Config{})
	must(t, g.Long(spin...))
	before := mask()
	must(t, g.VCPU.LockThread())
	if m := mask(); m.Val[0] != before.Val[0]|1<<(unix.SIGIO-1) {
		t.Errorf("mask %#x inside, %#x outside", m.Val[0], before.Val[0])
	}
	g.VCPU.Kick()
	if _, err := g.VCPU.Run(); !errors.Is(err, kvm.ErrKicked) {
		t.Errorf("%v", err)
	}
	must(t, g.VCPU.UnlockThread())
	if m := mask(); m != before {
		t.Errorf("mask %#x afterwards, %#x before", m.Val[0], before.Val[0])
	}
}

func TestRunNeedsThread(t *testing.T) {
	g := kvmtest.Unowned(t, bare.Config{})
	for name, f := range map[string]func(){
		"Run":          func() { g.VCPU.Run() },
		"UnlockThread": func() { g.VCPU.UnlockThread() },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s without LockThread did not panic", name)
				}
			}()
			f()
		}()
	}
}

// TestStartupIPI: a second processor waits for its SIPI, can be kicked there,
// and starts in real mode when the first one sends it.
func TestStartupIPI(t *testing.T) {
	g := kvmtest.Unowned(t, bare.Config{IRQChip: true, VCPUs: 2})
	bsp, ap := g.VCPUs[0], g.VCPUs[1]
	s, err := bsp.Sregs()
	must(t, err)
	s.ApicBase |= 1 << 10
	must(t, bsp.SetSregs(&s))
	must(t, g.Long(
		0xB9, 0x30, 0x08, 0, 0, // mov ecx, 0x830    ICR
		0xBA, 1, 0, 0, 0, //       mov edx, 1        APIC 1
		0xB8, 0x00, 0x45, 0, 0, // mov eax, 0x4500   INIT
		0x0F, 0x30, //             wrmsr
		0xB8, 0x10, 0x46, 0, 0, // mov eax, 0x4610   SIPI to 0x10000
		0x0F, 0x30, //             wrmsr
		0xE6, 0x80, //             out 0x80, al
		0xEB, 0xFE,
	))
	must(t, g.Mem.WriteAt([]byte{0xE6, 0x90, 0xF4}, 0x10000)) // out 0x90, al
	if st, err := ap.MPState(); err != nil || st != kvm.MPUninitialized {
		t.Fatalf("the second processor is %v, %v", st, err)
	}
	kicked, started := make(chan error, 1), make(chan error, 1)
	go func() {
		err := ap.LockThread()
		if err == nil {
			_, err = ap.Run()
		}
		kicked <- err
		e, err := ap.Run()
		if err == nil && (e.Reason != kvm.ExitIO || e.IO.Port != 0x90) {
			err = fmt.Errorf("second processor: %v", e)
		}
		started <- errors.Join(err, ap.UnlockThread())
	}()
	ap.Kick()
	within(t, 20*time.Second, func() {
		if err := <-kicked; !errors.Is(err, kvm.ErrKicked) {
			t.Errorf("kick of a waiting processor: %v", err)
		}
	})
	must(t, bsp.LockThread())
	port(t, bsp, 0x80)
	must(t, bsp.UnlockThread())
	within(t, 20*time.Second, func() {
		if err := <-started; err != nil {
			t.Error(err)
		}
	})
}

// TestRunDoesNotAllocate: neither exits nor kicks cost garbage.
func TestRunDoesNotAllocate(t *testing.T) {
	g := kvmtest.Guest(t, bare.Config{})
	must(t, g.Long(storm...))
	if n := testing.AllocsPerRun(100, func() { g.VCPU.Run() }); n != 0 {
		t.Errorf("%v allocations for each exit", n)
	}
	if n := testing.AllocsPerRun(100, func() { g.VCPU.Kick(); g.VCPU.Run() }); n != 0 {
		t.Errorf("%v allocations for each kick", n)
	}
	must(t, g.VCPU.EnableSync(kvm.SyncRegs))
	if n := testing.AllocsPerRun(100, func() {
		g.VCPU.Run()
		g.VCPU.SyncRegs().RAX++
		g.VCPU.MarkDirty(kvm.SyncRegs)
	}); n != 0 {
		t.Errorf("%v allocations for each exit with registers", n)
	}
}

// BenchmarkKick is the time from Kick to the owner's answer, back and forth
// between two goroutines, with its median and 99th percentile.
func BenchmarkKick(b *testing.B) {
	for _, c := range []struct {
		name string
		code []byte
	}{{"spin", spin}, {"sleep", sleep}} {
		b.Run(c.name, func(b *testing.B) {
			o := ownGuest(b, c.code)
			o.kick()
			var took []time.Duration
			for b.Loop() {
				t0 := time.Now()
				o.kick()
				took = append(took, time.Since(t0))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
		})
	}
}

// BenchmarkExit is one port write with its exit to userspace.
func BenchmarkExit(b *testing.B) {
	g := kvmtest.Guest(b, bare.Config{})
	must(b, g.Long(storm...))
	for b.Loop() {
		if _, err := g.VCPU.Run(); err != nil {
			b.Fatal(err)
		}
	}
}
