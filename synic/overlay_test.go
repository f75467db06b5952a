package synic_test

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

type pageBytes = [guest.PageSize]byte

func readPage(t testing.TB, g *synictest.Guest, a guest.GPA) (b pageBytes) {
	t.Helper()
	if err := g.Memory.ReadAt(b[:], a); err != nil {
		t.Fatal(err)
	}
	return b
}

func fillPage(t testing.TB, g *synictest.Guest, a guest.GPA, x byte) {
	t.Helper()
	if err := g.Memory.WriteAt(bytes.Repeat([]byte{x}, guest.PageSize), a); err != nil {
		t.Fatal(err)
	}
}

func filled(x byte) (b pageBytes) {
	for i := range b {
		b[i] = x
	}
	return b
}

// One page through its life: zero at first, its own content when it comes back
// elsewhere, RAM untouched underneath, zero again after INIT.
func TestOverlay(t *testing.T) {
	for _, m := range []hv.MSR{hv.MSRSIMP, hv.MSRSIEFP, hv.MSRVPAssistPage} {
		g := synictest.New(t, 1, nil)
		v := g.VPs[0]
		const a, b = guest.GPA(0x20000), guest.GPA(0x30000)
		fillPage(t, g, a, 0xAA)
		fillPage(t, g, b, 0xBB)
		expect := func(what string, at guest.GPA, x byte) {
			t.Helper()
			if readPage(t, g, at) != filled(x) {
				t.Errorf("MSR %#x, %s: page at %v is not full of %#x", uint32(m), what, at, x)
			}
		}
		place := func(at guest.GPA, on bool) { v.Write(m, uint64(hv.MakePageRegister(at, on))) }
		place(a, true)
		expect("enabled", a, 0)
		fillPage(t, g, a, 0x11)
		place(a, true)
		expect("enabled twice", a, 0x11)
		place(a, false)
		expect("disabled", a, 0xAA)
		fillPage(t, g, a, 0xA2)
		place(b, true)
		expect("enabled elsewhere", b, 0x11)
		place(a, true)
		expect("moved", a, 0x11)
		expect("moved away", b, 0xBB)
		place(1<<39, true) // not RAM
		expect("moved out of RAM", a, 0xA2)
		place(b, true)
		expect("back in RAM", b, 0x11)
		v.Reset()
		expect("after INIT", b, 0xBB)
		place(b, true)
		expect("enabled after INIT", b, 0)
		place(0, false)
		if n := g.Partition.Places(); n != 0 {
			t.Errorf("%d places left", n)
		}
	}
}

// What the guest writes into the hypercall page or the reference TSC page is
// gone when the page comes back.
func TestOverlayOfHypervisor(t *testing.T) {
	g := synictest.New(t, 1, nil)
	v := g.VPs[0]
	const a = guest.GPA(0x20000)
	fillPage(t, g, a, 0xAA)
	v.Write(hv.MSRGuestOSID, 1)
	for _, m := range []hv.MSR{hv.MSRHypercall, hv.MSRReferenceTSC} {
		v.Write(m, uint64(a)|1)
		want := readPage(t, g, a)
		if want == filled(0xAA) {
			t.Errorf("MSR %#x: no page", uint32(m))
		}
		fillPage(t, g, a, 0x66)
		v.Write(m, 0)
		if readPage(t, g, a) != filled(0xAA) {
			t.Errorf("MSR %#x: RAM is not back", uint32(m))
		}
		v.Write(m, uint64(a)|1)
		got := readPage(t, g, a)
		if m == hv.MSRReferenceTSC {
			copy(got[:4], want[:4]) // the sequence moves on
		}
		if got != want {
			t.Errorf("MSR %#x: the page is not what it was", uint32(m))
		}
		v.Write(m, 0)
	}
}

// An overlay under another one is out of sight but works.
func TestOverlayCoveredStillWorks(t *testing.T) {
	g := synictest.New(t, 2, nil)
	g.BringUp(2)
	a := g.VPs[0].SIM()
	g.VPs[1].Write(hv.MSRVPAssistPage, uint64(a)|1)
	port := g.Partition.OpenMessagePort(1, 2, nil)
	if st := port.Post(0, message(5)); st != hv.StatusSuccess {
		t.Fatal(st)
	}
	if readPage(t, g, a) != filled(0) {
		t.Error("the message shows in the page on top")
	}
	g.VPs[1].Write(hv.MSRVPAssistPage, 0)
	if m, ok := g.VPs[0].TakeMessage(2); !ok || number(m) != 5 {
		t.Errorf("took %d (%v)", number(m), ok)
	}
}

// overlayModel is what pages should look like, one byte value per whole page
// plus nothing else: contents are compared in full.
type overlayModel struct {
	ram     map[guest.GPA]pageBytes
	stack   map[guest.GPA][]*modelPage
	pages   []*modelPage
	outside guest.GPA
}

type modelPage struct {
	vp      int
	msr     hv.MSR
	fixed   bool
	enabled bool
	base    guest.GPA
	content pageBytes // what is kept
	shown   pageBytes // fixed pages: what the guest made of it
}

func (m *overlayModel) top(a guest.GPA) *modelPage {
	if s := m.stack[a]; len(s) > 0 {
		return s[len(s)-1]
	}
	return nil
}

func (m *overlayModel) want(a guest.GPA) pageBytes {
	if o := m.top(a); o != nil {
		return o.shown
	}
	return m.ram[a]
}

func (m *overlayModel) write(a guest.GPA, b pageBytes) {
	o := m.top(a)
	if o == nil {
		m.ram[a] = b
		return
	}
	o.shown = b
	if !o.fixed {
		o.content = b
	}
}

func (m *overlayModel) set(o *modelPage, on bool, a guest.GPA) {
	if o.enabled == on && o.base == a || !o.enabled && !on {
		o.base = a
		return
	}
	if o.enabled && o.base != m.outside {
		s := m.stack[o.base]
		for i, x := range s {
			if x == o {
				m.stack[o.base] = append(append([]*modelPage{}, s[:i]...), s[i+1:]...)
				if i == len(s)-1 && i > 0 {
					s[i-1].shown = s[i-1].content
				}
				break
			}
		}
	}
	o.enabled, o.base = on, a
	if on && a != m.outside {
		m.stack[a] = append(m.stack[a], o)
		o.shown = o.content
	}
}

// Random placement of all kinds of pages, on each other too, with writes by
// the guest and by the host, against a model of a stack per address.
func TestOverlayModel(t *testing.T) {
	addresses := []guest.GPA{0x200000, 0x201000, 0x202000}
	const outside = guest.GPA(1 << 38)
	rapid.Check(t, func(rt *rapid.T) {
		g := synictest.New(t, 2, nil)
		defer g.Close()
		m := &overlayModel{ram: map[guest.GPA]pageBytes{}, stack: map[guest.GPA][]*modelPage{}, outside: outside}
		for vp := range 2 {
			for _, msr := range []hv.MSR{hv.MSRSIMP, hv.MSRSIEFP, hv.MSRVPAssistPage} {
				m.pages = append(m.pages, &modelPage{vp: vp, msr: msr})
			}
			g.VPs[vp].Write(hv.MSRSCONTROL, 1)
			g.VPs[vp].Write(hv.MSRSINT(3), 0x40)
		}
		m.pages = append(m.pages, &modelPage{msr: hv.MSRHypercall, fixed: true, content: synic.HypercallPage(synictest.TrapPort, synictest.SignalPort)})
		g.VPs[0].Write(hv.MSRGuestOSID, 1)
		page := rapid.SampledFrom(m.pages)
		address := rapid.SampledFrom(append([]guest.GPA{outside}, addresses...))
		rt.Repeat(map[string]func(*rapid.T){
			"place": func(rt *rapid.T) {
				o, a, on := page.Draw(rt, "page"), address.Draw(rt, "address"), rapid.IntRange(0, 3).Draw(rt, "on") > 0
				g.VPs[o.vp].Write(o.msr, uint64(hv.MakePageRegister(a, on)))
				m.set(o, on, a)
			},
			"write": func(rt *rapid.T) {
				a, x := rapid.SampledFrom(addresses).Draw(rt, "address"), rapid.Byte().Draw(rt, "value")
				fillPage(t, g, a, x)
				m.write(a, filled(x))
			},
			"signal": func(rt *rapid.T) {
				vp := rapid.IntRange(0, 1).Draw(rt, "vp")
				flag := rapid.Uint16Range(0, 2047).Draw(rt, "flag")
				o := m.pages[vp*3+1]
				want := hv.StatusSuccess
				if !o.enabled {
					want = hv.StatusInvalidSynICState
				}
				if st := g.Partition.SignalEvent(hv.VPIndex(vp), 3, flag); st != want {
					rt.Fatalf("signal: %v, want %v", st, want)
				}
				if o.enabled {
					o.content[3*256+flag/8] |= 1 << (flag % 8)
					o.shown = o.content
				}
			},
			"reset": func(rt *rapid.T) {
				if rapid.IntRange(0, 9).Draw(rt, "really") > 0 {
					return
				}
				vp := rapid.IntRange(0, 1).Draw(rt, "vp")
				g.VPs[vp].Reset()
				for _, o := range m.pages[vp*3 : vp*3+3] {
					m.set(o, false, 0)
					o.content = pageBytes{}
				}
				g.VPs[vp].Write(hv.MSRSCONTROL, 1)
				g.VPs[vp].Write(hv.MSRSINT(3), 0x40)
			},
			"": func(rt *rapid.T) {
				places := 0
				for _, a := range addresses {
					if got, want := readPage(t, g, a), m.want(a); got != want {
						rt.Fatalf("page %v begins % x, want % x", a, got[:8], want[:8])
					}
					if m.top(a) != nil {
						places++
					}
				}
				if n := g.Partition.Places(); n != places {
					rt.Fatalf("%d places, want %d", n, places)
				}
			},
		})
		// All gone: RAM is what it was.
		g.Partition.Reset()
		for _, a := range addresses {
			if readPage(t, g, a) != m.ram[a] {
				rt.Fatalf("RAM at %v is not back", a)
			}
		}
	})
}

// Two VPs fight over the same pages; afterwards RAM is whole.
func TestHammerOverlay(t *testing.T) {
	g := synictest.New(t, 4, nil)
	const base = guest.GPA(0x200000)
	for i := range guest.GPA(3) {
		fillPage(t, g, base+i*guest.PageSize, 0xC0+byte(i))
	}
	done := make(chan struct{})
	for i, v := range g.VPs {
		go func() {
			defer func() { done <- struct{}{} }()
			for n := range 400 {
				m := []hv.MSR{hv.MSRSIMP, hv.MSRSIEFP, hv.MSRVPAssistPage}[n%3]
				v.Write(m, uint64(base)+uint64((n*7+i)%3*guest.PageSize)|uint64(n/3+i)%4&1)
				v.Write(hv.MSRSCONTROL, 1)
				g.Partition.SignalEvent(hv.VPIndex((i+1)%4), 1, uint16(n))
				if n%97 == 0 {
					v.Reset()
				}
			}
		}()
	}
	for range g.VPs {
		<-done
	}
	g.Partition.Reset()
	for i := range guest.GPA(3) {
		if readPage(t, g, base+i*guest.PageSize) != filled(0xC0+byte(i)) {
			t.Errorf("RAM at %v is not back", base+i*guest.PageSize)
		}
	}
	if n := g.Partition.Places(); n != 0 {
		t.Errorf("%d places left", n)
	}
}
