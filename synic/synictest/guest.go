package synictest

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
)

// What a Guest has by default.
const (
	RAMSize = 8 << 20

	// AllPrivileges and AllFeatures are everything there is.
	AllPrivileges = synic.SupportedPrivileges
	AllFeatures   = synic.SupportedFeatures

	TrapPort   = 0xE0
	SignalPort = 0xE4

	// LinuxOSID is what Linux 6.12.117 writes to GUEST_OS_ID.
	LinuxOSID = 0x8100_0006_0C75_0000

	// Vector is where a Guest wants its SINT interrupts, Linux's
	// HYPERVISOR_CALLBACK_VECTOR.
	Vector = 0xF3

	// patience is how long anything a test waits for may take. It only passes
	// when something is broken.
	patience = 30 * time.Second
)

// Addresses a Guest uses; each VP has its pages vpPages*index further on.
const (
	hypercallGPA = guest.GPA(0x10000)
	tscGPA       = guest.GPA(0x11000)
	vpBase       = guest.GPA(0x100000)
	vpPages      = 0x10000

	simOffset   = 0x0000
	siefOffset  = 0x1000
	inputOffset = 0x2000
)

// A Guest is a partition with processors that a test plays.
type Guest struct {
	T         testing.TB
	H         *synic.Hypervisor
	Partition *synic.Partition
	Memory    *guest.Memory
	Clock     *Clock // nil if the test brought its own
	VPs       []*VP
}

// A VP is a processor of a Guest. Like the code of a real one its methods
// belong to one goroutine at a time; interrupts come from anywhere.
type VP struct {
	*synic.VP
	G *Guest

	requests [4]atomic.Uint64 // the APIC's IRR: one bit per vector
	total    atomic.Uint64
	auto     atomic.Uint64
	wake     chan struct{}
}

// interrupts is the Interrupter of a Guest.
type interrupts struct{ g *Guest }

func (i interrupts) Interrupt(vp hv.VPIndex, vector uint8) error {
	i.g.VPs[vp].request(vector)
	return nil
}

func (i interrupts) InterruptAutoEOI(vp hv.VPIndex, vector uint8) error {
	i.g.VPs[vp].auto.Add(1)
	i.g.VPs[vp].request(vector)
	return nil
}

// New makes a guest with the given number of VPs, all privileges and a Clock
// that shows 1000. change, which may be nil, edits the configuration first. It
// ends with the test.
func New(t testing.TB, vps int, change func(*synic.Config)) *Guest {
	t.Helper()
	return NewIn(t, synic.NewHypervisor(), vps, change)
}

// NewIn is New in an existing hypervisor.
func NewIn(t testing.TB, h *synic.Hypervisor, vps int, change func(*synic.Config)) *Guest {
	t.Helper()
	g := &Guest{T: t, H: h, Clock: NewClock(1000)}
	mem, err := guest.New(guest.Region{Base: 0, Size: RAMSize})
	if err != nil {
		t.Fatal(err)
	}
	g.Memory = mem
	for range vps {
		g.VPs = append(g.VPs, &VP{G: g, wake: make(chan struct{}, 1)})
	}
	cfg := synic.Config{
		Memory: mem, VPs: vps, PhysBits: 40,
		Interrupts: interrupts{g},
		Clock:      g.Clock, Alarms: g.Clock.Maker,
		Privileges: AllPrivileges, Features: AllFeatures,
		TrapPort: TrapPort, SignalPort: SignalPort,
		Idle: func(hv.VPIndex) {},
		Logf: t.Logf,
	}
	if change != nil {
		change(&cfg)
	}
	if g.Partition, err = h.NewPartition(cfg); err != nil {
		t.Fatal(err)
	}
	for i, v := range g.VPs {
		v.VP = g.Partition.VP(hv.VPIndex(i))
	}
	t.Cleanup(g.Close)
	return g
}

// Close ends the guest before the test does, for tests that make many.
func (g *Guest) Close() {
	g.Partition.Close()
	g.Memory.Close()
}

func (v *VP) request(vector uint8) {
	v.total.Add(1)
	v.requests[vector/64].Or(1 << (vector % 64))
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// Interrupts returns how many interrupts the VP was sent, merged ones counted
// each, and how many of them as AutoEOI.
func (v *VP) Interrupts() (total, autoEOI uint64) { return v.total.Load(), v.auto.Load() }

// TakeInterrupt acknowledges the highest pending vector, if any.
func (v *VP) TakeInterrupt() (vector uint8, ok bool) {
	for i := len(v.requests) - 1; i >= 0; i-- {
		if w := v.requests[i].Load(); w != 0 {
			n := bits.Len64(w) - 1
			v.requests[i].And(^(uint64(1) << n))
			return uint8(i*64 + n), true
		}
	}
	return 0, false
}

// WaitInterrupt waits for an interrupt and acknowledges it; done, which may be
// nil, ends the wait. The test fails if neither comes.
func (v *VP) WaitInterrupt(done <-chan struct{}) (vector uint8, ok bool) {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		if n, ok := v.TakeInterrupt(); ok {
			return n, true
		}
		select {
		case <-v.wake:
		case <-done:
			return 0, false
		case <-timeout.C:
			v.G.T.Errorf("VP %d: no interrupt in %v", v.Index(), patience)
			return 0, false
		}
	}
}

// Write is a WRMSR that must not fault.
func (v *VP) Write(m hv.MSR, val uint64) {
	v.G.T.Helper()
	if !v.WriteMSR(m, val) {
		v.G.T.Errorf("VP %d: wrmsr %#x, %#x: #GP", v.Index(), uint32(m), val)
	}
}

// Read is an RDMSR that must not fault.
func (v *VP) Read(m hv.MSR) uint64 {
	v.G.T.Helper()
	val, ok := v.ReadMSR(m)
	if !ok {
		v.G.T.Errorf("VP %d: rdmsr %#x: #GP", v.Index(), uint32(m))
	}
	return val
}

// SIM returns where BringUp puts the message page.
func (v *VP) SIM() guest.GPA { return v.page(simOffset) }

// SIEF returns where BringUp puts the event flags page.
func (v *VP) SIEF() guest.GPA { return v.page(siefOffset) }

// InputPage returns a page of RAM for hypercall parameters.
func (v *VP) InputPage() guest.GPA { return v.page(inputOffset) }

func (v *VP) page(off uint64) guest.GPA {
	return vpBase + guest.GPA(uint64(v.Index())*vpPages+off)
}

// BringUp does what Linux does at boot: on VP 0 GUEST_OS_ID, the hypercall page
// and the reference TSC page, then on this VP the message page, the event
// flags page, the SINT with Vector, and the SynIC itself.
func (v *VP) BringUp(sint uint8) {
	v.G.T.Helper()
	if v.Index() == 0 {
		v.Write(hv.MSRReferenceTSC, uint64(hv.MakePageRegister(tscGPA, true)))
		v.Write(hv.MSRGuestOSID, LinuxOSID)
		v.Write(hv.MSRHypercall, v.Read(hv.MSRHypercall)|uint64(hv.MakePageRegister(hypercallGPA, true)))
	}
	v.Write(hv.MSRSIMP, uint64(hv.MakePageRegister(v.SIM(), true)))
	v.Write(hv.MSRSIEFP, uint64(hv.MakePageRegister(v.SIEF(), true)))
	v.Write(hv.MSRSINT(sint), Vector)
	v.Write(hv.MSRSCONTROL, v.Read(hv.MSRSCONTROL)|hv.SCONTROLEnable)
}

// BringUp brings up every VP.
func (g *Guest) BringUp(sint uint8) {
	g.T.Helper()
	for _, v := range g.VPs {
		v.BringUp(sint)
	}
}

// PeekMessage returns what is in the slot of a SINT of the message page at
// sim, and whether there is anything.
func (g *Guest) PeekMessage(sim guest.GPA, sint uint8) (m hv.Message, pending, ok bool) {
	g.T.Helper()
	var b [hv.SlotSize]byte
	a := sim + guest.GPA(hv.SlotOffset(sint))
	g.read(b[:], a)
	// The type decides, and it is the host's last store.
	binary.LittleEndian.PutUint32(b[:], g.word(a).Load())
	m, pending = hv.DecodeSlot(&b)
	return m, pending, m.Type != hv.MessageNone
}

// TakeMessage is Linux's vmbus_message handler for one message: read the type,
// copy, empty the slot if the type is unchanged, and write EOM if the host asks
// for it then.
func (v *VP) TakeMessage(sint uint8) (m hv.Message, ok bool) {
	v.G.T.Helper()
	return v.TakeMessageAt(v.SIM(), sint)
}

// TakeMessageAt is TakeMessage with the message page at sim.
func (v *VP) TakeMessageAt(sim guest.GPA, sint uint8) (m hv.Message, ok bool) {
	v.G.T.Helper()
	a := sim + guest.GPA(hv.SlotOffset(sint))
	typ := v.G.word(a + hv.SlotType)
	t := typ.Load()
	if t == 0 {
		return m, false
	}
	var b [hv.SlotSize]byte
	v.G.read(b[:], a)
	binary.LittleEndian.PutUint32(b[:], t)
	m, _ = hv.DecodeSlot(&b)
	if !typ.CompareAndSwap(t, 0) {
		return m, false
	}
	// The atomic operations are full barriers, Linux's comes here.
	if v.G.word(a+hv.SlotSizeOff).Load()&hv.SlotPending != 0 {
		v.Write(hv.MSREOM, 0)
	}
	return m, true
}

// TakeEvents returns the flags of a SINT that were set, and clears them.
func (v *VP) TakeEvents(sint uint8) (flags []uint16) {
	v.G.T.Helper()
	for f := 0; f < hv.EventFlagCount; f += 32 {
		off, _ := hv.EventFlagWord(sint, uint16(f))
		w := v.G.word(v.SIEF() + guest.GPA(off)).Swap(0)
		for ; w != 0; w &= w - 1 {
			flags = append(flags, uint16(f+bits.TrailingZeros32(w)))
		}
	}
	return flags
}

// PostMessage is HvCallPostMessage.
func (v *VP) PostMessage(id hv.ConnectionID, t hv.MessageType, payload []byte) hv.Status {
	v.G.T.Helper()
	in := hv.PostMessageInput{ConnectionID: id, MessageType: t, PayloadSize: uint32(len(payload))}
	copy(in.Payload[:], payload)
	return v.PostInput(&in)
}

// PostInput is HvCallPostMessage with any input.
func (v *VP) PostInput(in *hv.PostMessageInput) hv.Status {
	v.G.T.Helper()
	var b [hv.PostMessageSize]byte
	in.Put(&b)
	v.G.write(b[:], v.InputPage())
	return v.G.Partition.Hypercall(v.Index(), hv.MakeInput(hv.CallPostMessage, false), uint64(v.InputPage()), 0).Status()
}

// SignalEvent is a fast HvCallSignalEvent.
func (v *VP) SignalEvent(id hv.ConnectionID, flag uint16) hv.Status {
	in := hv.SignalEventInput{ConnectionID: id, FlagNumber: flag}
	return v.G.Partition.Hypercall(v.Index(), hv.FastSignalEvent, in.Uint64(), 0).Status()
}

// ReferenceTSC reads the reference TSC page that BringUp enabled.
func (g *Guest) ReferenceTSC() hv.ReferenceTSC {
	g.T.Helper()
	var b [24]byte
	g.read(b[:], tscGPA)
	return hv.ReferenceTSC{
		Sequence: binary.LittleEndian.Uint32(b[hv.TSCPageSequence:]),
		Scale:    binary.LittleEndian.Uint64(b[hv.TSCPageScale:]),
		Offset:   int64(binary.LittleEndian.Uint64(b[hv.TSCPageOffset:])),
	}
}

func (g *Guest) word(a guest.GPA) *atomic.Uint32 {
	g.T.Helper()
	w, err := g.Memory.Word(a)
	if err != nil {
		g.T.Fatal(err)
	}
	return w
}

func (g *Guest) read(b []byte, a guest.GPA) {
	g.T.Helper()
	if err := g.Memory.ReadAt(b, a); err != nil {
		g.T.Fatal(err)
	}
}

func (g *Guest) write(b []byte, a guest.GPA) {
	g.T.Helper()
	if err := g.Memory.WriteAt(b, a); err != nil {
		g.T.Fatal(err)
	}
}
