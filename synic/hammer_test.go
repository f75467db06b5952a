package synic_test

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

// stall gives other goroutines a chance at the worst moments.
func stall(r *rand.Rand) {
	for range r.IntN(4) {
		runtime.Gosched()
	}
}

// Many senders, several VPs, and guests that do what Linux does: each message
// arrives once and in order, although message pages move, go off and come back
// and timers share the slot. A wake-up that got lost would end the test by its
// timeout: the guests only ever wait for interrupts, the senders for free.
func TestHammerMessages(t *testing.T) {
	const vps, senders, each, sint = 2, 6, 1500, 2
	g := synictest.New(t, vps, nil)
	g.BringUp(sint)
	done := make(chan struct{})
	var senderGroup, guestGroup sync.WaitGroup
	var arrived [vps]atomic.Int64

	for s := range senders {
		free := make(chan struct{}, 1)
		port := g.Partition.OpenMessagePort(hv.PortID(s), sint, func() {
			select {
			case free <- struct{}{}:
			default:
			}
		})
		senderGroup.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(s)))
			var next [vps]int
			for next != [vps]int{each, each} {
				vp := r.IntN(vps)
				if next[vp] == each {
					vp = 1 - vp
				}
				switch st := port.Post(hv.VPIndex(vp), message(next[vp])); st {
				case hv.StatusSuccess:
					next[vp]++
				case hv.StatusInsufficientBuffers:
					<-free
				case hv.StatusInvalidSynICState:
					runtime.Gosched() // between off and on
				default:
					t.Errorf("post: %v", st)
					return
				}
				stall(r)
			}
		})
	}
	senderGroup.Go(func() { // time passes
		for {
			select {
			case <-done:
				return
			default:
				g.Clock.Advance(1000)
				runtime.Gosched()
			}
		}
	})
	for i, v := range g.VPs {
		guestGroup.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(i)))
			bases := []guest.GPA{v.SIM(), v.SIM() + 0x4000, v.SIM() + 0x5000}
			sim := bases[0]
			var want [senders]int
			v.Write(hv.MSRSTIMERConfig(0), uint64(hv.MakeTimerConfig(hv.TimerAutoEnable|hv.TimerPeriodic, 0, sint)))
			v.Write(hv.MSRSTIMERCount(0), 3000)
			for left := senders * each; left > 0; {
				if _, ok := v.WaitInterrupt(nil); !ok {
					t.Errorf("VP %d: %d messages did not come: %v", i, left, want)
					return
				}
				for {
					stall(r)
					m, ok := v.TakeMessageAt(sim, sint)
					if !ok {
						break
					}
					if m.Type == hv.MessageTimerExpired {
						continue
					}
					if number(m) != want[m.Origin] {
						t.Errorf("VP %d: message %d of sender %d, want %d", i, number(m), m.Origin, want[m.Origin])
						return
					}
					want[m.Origin]++
					left--
					arrived[i].Add(1)
				}
				switch r.IntN(20) {
				case 0:
					sim = bases[r.IntN(len(bases))]
					v.Write(hv.MSRSIMP, uint64(sim)|1)
				case 1:
					v.Write(hv.MSRSIMP, 0)
					stall(r)
					sim = bases[r.IntN(len(bases))]
					v.Write(hv.MSRSIMP, uint64(sim)|1)
				case 2:
					v.Write(hv.MSRSCONTROL, 0)
					stall(r)
					v.Write(hv.MSRSCONTROL, 1)
				}
			}
			v.Write(hv.MSRSTIMERCount(0), 0)
		})
	}
	guestGroup.Wait()
	close(done)
	if t.Failed() {
		return // senders may wait for ever
	}
	senderGroup.Wait()
	for i := range arrived {
		if n := arrived[i].Load(); n != senders*each {
			t.Errorf("VP %d: %d messages", i, n)
		}
	}
}

// spin passes a little time without giving up the processor.
func spin(n int) {
	for range n {
		spinSink.Add(1)
	}
}

var spinSink atomic.Uint64

// Two messages at a time, the guest taking the first just while the second is
// queued, and nothing after them that could help: the second must come all the
// same, through EOM or because the host looked again. The guest polls the slot,
// so half-written messages show as well.
func TestHammerPairs(t *testing.T) {
	const sint = 2
	g := synictest.New(t, 1, nil)
	g.BringUp(sint)
	v := g.VPs[0]
	port := g.Partition.OpenMessagePort(1, sint, nil)
	typ, err := g.Memory.Word(v.SIM() + guest.GPA(hv.SlotOffset(sint)))
	if err != nil {
		t.Fatal(err)
	}
	var taken, stop atomic.Int64
	numbered := func(n int) hv.Message {
		m := hv.NewMessage(hv.MessageType(1+n%1000), make([]byte, 4+n%(hv.MaxPayload-4)))
		m.Origin = 1
		for i := range m.Bytes() {
			m.Payload[i] = byte(n + i)
		}
		return m
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		r := rand.New(rand.NewPCG(5, 6))
		for n, idle := 0, 1; stop.Load() == 0; idle++ {
			if typ.Load() == 0 {
				if idle%1000 == 0 {
					runtime.Gosched() // there may be only one processor
				}
				continue
			}
			spin(r.IntN(40))
			m, ok := v.TakeMessage(sint)
			if want := numbered(n); !ok || m != want {
				t.Errorf("message %d: type %d, %d bytes; want %d, %d", n, m.Type, m.Size, want.Type, want.Size)
				stop.Store(1)
				return
			}
			n++
			taken.Store(int64(n))
		}
	}()
	r := rand.New(rand.NewPCG(7, 8))
	start := time.Now()
	for n := 0; time.Since(start) < time.Second && stop.Load() == 0; n += 2 {
		port.Post(0, numbered(n))
		spin(r.IntN(60))
		port.Post(0, numbered(n+1))
		posted := time.Now()
		for i := 1; taken.Load() < int64(n+2) && stop.Load() == 0; i++ {
			if i%1000 == 0 {
				runtime.Gosched()
				if time.Since(posted) > 20*time.Second {
					t.Errorf("message %d did not arrive", taken.Load())
					stop.Store(1)
				}
			}
		}
	}
	stop.Store(1)
	<-finished
	if n := taken.Load(); n < 2 {
		t.Errorf("only %d messages", n)
	} else {
		t.Logf("%d messages", n)
	}
}

// A Post that meets a Close is either refused or dropped: no message of a
// closed port is left in a queue.
func TestHammerClosePort(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.BringUp(2)
	v := g.VPs[0]
	blocker := g.Partition.OpenMessagePort(1, 2, nil)
	for n := range 5000 {
		blocker.Post(0, message(n)) // the slot is busy from here on
		port := g.Partition.OpenMessagePort(2, 2, nil)
		posted := make(chan struct{})
		go func() {
			defer close(posted)
			for port.Post(0, message(n)) != hv.StatusInvalidPortID {
			}
		}()
		spin(n % 500)
		port.Close()
		<-posted
		if m, ok := v.TakeMessage(2); !ok || m.Origin != 1 || number(m) != n {
			t.Fatalf("round %d: slot has message %d of port %d (%v)", n, number(m), m.Origin, ok)
		}
		if m, ok := v.TakeMessage(2); ok {
			t.Fatalf("round %d: message of port %d, which is closed", n, m.Origin)
		}
	}
}

// A signal after the guest has taken the flag interrupts again: a signaller
// that waits for its flag to be seen never waits for ever.
func TestHammerEvents(t *testing.T) {
	const signallers, each, sint = 4, 3000, 2
	g := synictest.New(t, 1, nil)
	g.BringUp(sint)
	v := g.VPs[0]
	var seen [signallers]chan struct{}
	var group sync.WaitGroup
	failed := make(chan struct{})
	for s := range signallers {
		seen[s] = make(chan struct{}, 1)
		group.Go(func() {
			for range each {
				for {
					st := g.Partition.SignalEvent(0, sint, uint16(s*33))
					if st == hv.StatusSuccess {
						break
					}
					if st != hv.StatusInvalidSynICState {
						t.Errorf("signal: %v", st)
						return
					}
					runtime.Gosched()
				}
				select {
				case <-seen[s]:
				case <-failed:
					return
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(3, 4))
	for left := signallers * each; left > 0; {
		if _, ok := v.WaitInterrupt(nil); !ok {
			close(failed)
			break
		}
		stall(r)
		for _, f := range v.TakeEvents(sint) {
			left--
			seen[f/33] <- struct{}{}
		}
		if r.IntN(50) == 0 {
			v.Write(hv.MSRSIEFP, 0)
			stall(r)
			v.Write(hv.MSRSIEFP, uint64(v.SIEF())|1)
		}
	}
	group.Wait()
}

// Everything at once, from everywhere, for the race detector and for
// deadlocks: what arrives does not matter.
func TestHammerLifecycle(t *testing.T) {
	const rounds = 300
	d := &doorbells{fns: map[hv.ConnectionID]func(){}}
	g := synictest.New(t, 2, func(c *synic.Config) { c.Doorbell, c.Logf = d, nil })
	p := g.Partition
	var group sync.WaitGroup
	for i, v := range g.VPs {
		group.Go(func() {
			for n := range rounds {
				v.BringUp(2)
				setTimer(v, n%4, hv.TimerAutoEnable|hv.TimerPeriodic, uint64(500+n))
				v.SignalEvent(hv.ConnectionID(n%4), 0)
				v.PostMessage(hv.ConnectionID(n%4), 1, []byte{1})
				v.TakeMessage(2)
				if n%7 == i {
					v.Reset()
				}
				v.Write(hv.MSRHypercall, 0)
			}
		})
	}
	group.Go(func() {
		for n := range rounds {
			id := hv.ConnectionID(n % 4)
			p.ConnectEvent(id, 1, &atomicEvents{})
			port := p.OpenMessagePort(1, 2, func() {})
			port.Post(hv.VPIndex(n%2), message(n))
			p.Disconnect(id)
			p.ConnectMessage(id, &echo{port})
			p.SignalEvent(hv.VPAny, 2, uint16(n))
			p.Disconnect(id)
			port.Close()
			if n%31 == 0 {
				p.Reset()
			}
		}
	})
	group.Go(func() {
		port := p.OpenMessagePort(9, 2, nil)
		for n := range rounds {
			g.Clock.Advance(5000)
			port.Post(hv.VPAny, message(n))
			p.RefreshReferenceTSC()
			d.mu.Lock()
			fn := d.fns[hv.ConnectionID(n%4)]
			d.mu.Unlock()
			if fn != nil {
				fn()
			}
		}
	})
	group.Wait()
	p.Close()
	if n := d.ids(); n != "0 []" {
		t.Errorf("doorbells left: %s", n)
	}
}

type atomicEvents struct{ n atomic.Int64 }

func (a *atomicEvents) HandleEvent(uint16) { a.n.Add(1) }

func BenchmarkPostTakeEOM(b *testing.B) {
	g := synictest.New(b, 1, nil)
	g.BringUp(2)
	v := g.VPs[0]
	port := g.Partition.OpenMessagePort(1, 2, nil)
	m := message(1)
	b.ReportAllocs()
	for b.Loop() {
		port.Post(0, m)
		port.Post(0, m)
		v.TakeMessage(2)
		v.TakeMessage(2)
	}
}

func BenchmarkHypercallSignal(b *testing.B) {
	g := synictest.New(b, 1, nil)
	if err := g.Partition.ConnectEvent(1, 1, &atomicEvents{}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		g.VPs[0].SignalEvent(1, 0)
	}
}

func BenchmarkHypercallPost(b *testing.B) {
	g := synictest.New(b, 1, nil)
	if err := g.Partition.ConnectMessage(1, refuse(0)); err != nil {
		b.Fatal(err)
	}
	v := g.VPs[0]
	b.ReportAllocs()
	for b.Loop() {
		v.PostMessage(1, 1, nil)
	}
}
