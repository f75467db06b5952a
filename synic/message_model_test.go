package synic_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

// queueModel is what the SIM of one VP should look like.
type queueModel struct {
	on, simp bool
	at       guest.GPA
	masked   [4]bool
	slot     [4][]int // at most one
	pending  [4]bool
	queue    [4][]int
	port     map[int]int // message number to port
	raised   uint64
}

func (m *queueModel) deliver(s int) {
	if len(m.queue[s]) == 0 || !m.on || !m.simp {
		return
	}
	if len(m.slot[s]) > 0 {
		m.pending[s] = true
		return
	}
	m.slot[s], m.queue[s] = m.queue[s][:1:1], m.queue[s][1:]
	m.pending[s] = len(m.queue[s]) > 0
	if !m.masked[s] {
		m.raised++
	}
}

func (m *queueModel) used(port int) (n int) {
	for _, q := range m.queue {
		for _, x := range q {
			if m.port[x] == port {
				n++
			}
		}
	}
	return n
}

// Random posts, EOMs, moves, masks, port closures and resets, against a model.
func TestMessageQueueModel(t *testing.T) {
	bases := []guest.GPA{0x200000, 0x201000, 1 << 38} // the last is not RAM
	rapid.Check(t, func(rt *rapid.T) {
		g := synictest.New(t, 1, nil)
		defer g.Close()
		v := g.VPs[0]
		m := &queueModel{port: map[int]int{}}
		var ports [3]*synic.SendPort
		open := func(i int) { ports[i] = g.Partition.OpenMessagePort(hv.PortID(i), uint8(1+i%2), nil) }
		for i := range ports {
			open(i)
		}
		reset := func() {
			*m = queueModel{port: m.port, raised: m.raised}
			for s := range m.masked {
				m.masked[s] = true
			}
		}
		reset()
		posted := 0
		sint := rapid.IntRange(1, 2)
		rt.Repeat(map[string]func(*rapid.T){
			"post": func(rt *rapid.T) {
				i := rapid.IntRange(0, len(ports)-1).Draw(rt, "port")
				s := 1 + i%2
				want := hv.StatusSuccess
				switch {
				case m.used(i) == synic.PortBuffers:
					want = hv.StatusInsufficientBuffers
				case !m.on || !m.simp:
					want = hv.StatusInvalidSynICState
				}
				if st := ports[i].Post(0, message(posted)); st != want {
					rt.Fatalf("post: %v, want %v", st, want)
				}
				if want == hv.StatusSuccess {
					m.queue[s] = append(m.queue[s], posted)
					m.port[posted] = i
					m.deliver(s)
				}
				posted++
			},
			"take": func(rt *rapid.T) {
				s := sint.Draw(rt, "sint")
				if !m.simp || m.at == bases[2] {
					return
				}
				got, ok := v.TakeMessageAt(m.at, uint8(s))
				if ok != (len(m.slot[s]) == 1) || ok && number(got) != m.slot[s][0] {
					rt.Fatalf("took %d (%v), model has %v", number(got), ok, m.slot[s])
				}
				m.slot[s] = nil
				if ok && m.pending[s] {
					for s := range m.queue {
						m.deliver(s)
					}
				}
			},
			"EOM": func(*rapid.T) {
				v.Write(hv.MSREOM, 0)
				for s := range m.queue {
					m.deliver(s)
				}
			},
			"SIMP": func(rt *rapid.T) {
				m.simp = rapid.Bool().Draw(rt, "enable")
				m.at = rapid.SampledFrom(bases).Draw(rt, "base")
				v.Write(hv.MSRSIMP, uint64(hv.MakePageRegister(m.at, m.simp)))
				for s := range m.queue {
					m.deliver(s)
				}
			},
			"SCONTROL": func(rt *rapid.T) {
				m.on = rapid.Bool().Draw(rt, "enable")
				val := uint64(0)
				if m.on {
					val = 1
				}
				v.Write(hv.MSRSCONTROL, val)
				for s := range m.queue {
					m.deliver(s)
				}
			},
			"SINT": func(rt *rapid.T) {
				s := sint.Draw(rt, "sint")
				m.masked[s] = rapid.Bool().Draw(rt, "masked")
				val := uint64(0xF3)
				if m.masked[s] {
					val |= 1 << 16
				}
				v.Write(hv.MSRSINT(uint8(s)), val)
			},
			"close": func(rt *rapid.T) {
				i := rapid.IntRange(0, len(ports)-1).Draw(rt, "port")
				ports[i].Close()
				for s, q := range m.queue {
					var kept []int
					for _, x := range q {
						if m.port[x] != i {
							kept = append(kept, x)
						}
					}
					m.queue[s] = kept
				}
				open(i)
			},
			"reset": func(rt *rapid.T) {
				if rapid.IntRange(0, 9).Draw(rt, "really") == 0 {
					v.Reset()
					reset()
				}
			},
			"": func(rt *rapid.T) {
				if n, _ := v.Interrupts(); n != m.raised {
					rt.Fatalf("%d interrupts, want %d", n, m.raised)
				}
				if !m.simp || m.at == bases[2] {
					return
				}
				for s := 1; s <= 2; s++ {
					got, pending, ok := g.PeekMessage(m.at, uint8(s))
					if ok != (len(m.slot[s]) == 1) || ok && (number(got) != m.slot[s][0] || pending != m.pending[s]) {
						rt.Fatalf("SINT %d: message %d (%v) pending %v; model has %v, pending %v", s, number(got), ok, pending, m.slot[s], m.pending[s])
					}
				}
			},
		})
	})
}
