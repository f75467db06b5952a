package synic_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

// FuzzMSR plays a sequence of register accesses, guest writes to RAM, posts,
// signals and time over two VPs. What must hold: reads give what the last
// write that was not refused left there, RAM is whole after a reset, and
// nothing hangs or panics.
func FuzzMSR(f *testing.F) {
	op := func(b ...byte) []byte { return b }
	seq := func(ops ...[]byte) (all []byte) {
		for _, o := range ops {
			all = append(all, o...)
		}
		return all
	}
	write := func(vp byte, m hv.MSR, val uint64) []byte {
		return binary.LittleEndian.AppendUint64(op(vp, byte(m), byte(m>>8)), val)
	}
	f.Add(seq(write(0, hv.MSRSIMP, 0x3001), write(0, hv.MSRSIEFP, 0x3001), write(1, hv.MSRSIMP, 0x3001), write(0, hv.MSRSCONTROL, 1),
		write(0, hv.MSRSINT(2), 0xF3), op(0x42, 0, 0), op(0x42, 0, 0), write(1, hv.MSRSIMP, 0), write(0, hv.MSREOM, 0), op(0x82, 0, 0)))
	f.Add(seq(write(1, hv.MSRSTIMERConfig(0), 0x2000B), write(1, hv.MSRSTIMERCount(0), 1), op(0xC0, 0xFF, 0xFF), write(1, hv.MSRSTIMERCount(0), 0)))
	f.Add(seq(write(0, hv.MSRGuestOSID, 1), write(0, hv.MSRHypercall, 0x3003), write(0, hv.MSRReferenceTSC, 0x3001), write(0, hv.MSRReset, 1)))
	f.Add(seq(write(0, hv.MSRCrashP0+4, ones), write(0, hv.MSRCrashCtl, ones), write(0, 0x400001FF, 1)))

	f.Fuzz(func(t *testing.T, in []byte) {
		const pages, first = 4, guest.GPA(0x2000)
		g := synictest.New(t, 2, func(c *synic.Config) {
			c.Logf = nil
			c.APIC = &fakeAPIC{}
			c.OnCrash = func(r synic.CrashReport) {
				if len(r.Message) > hv.CrashMessageMax {
					t.Errorf("text of %d bytes", len(r.Message))
				}
			}
		})
		defer g.Close()
		port := g.Partition.OpenMessagePort(1, 2, func() {})
		for i := range guest.GPA(pages) {
			fillPage(t, g, first+i*guest.PageSize, 0xD0+byte(i))
		}
		stored := map[hv.MSR]bool{hv.MSRGuestOSID: true, hv.MSRCrashP0: true, hv.MSRTPR: true, hv.MSRTSCInvariantControl: true}
		for steps := 0; len(in) >= 3 && steps < 2000; steps++ {
			vp, low, high := in[0]&1, in[1], in[2]
			v := g.VPs[vp]
			kind := in[0] >> 6
			in = in[3:]
			switch kind {
			case 1:
				port.Post(hv.VPIndex(vp), message(steps))
			case 2:
				g.Partition.SignalEvent(hv.VPIndex(vp), low, uint16(high)<<4)
			case 3:
				g.Clock.Advance(uint64(low) + uint64(high)<<8)
			default:
				m := hv.FirstMSR + hv.MSR(low) + hv.MSR(high&1)<<8
				old, readable := v.ReadMSR(m)
				if len(in) < 8 {
					break
				}
				val := binary.LittleEndian.Uint64(in)
				in = in[8:]
				ok := v.WriteMSR(m, val)
				now, still := v.ReadMSR(m)
				switch {
				case readable != still:
					t.Fatalf("MSR %#x: readable %v, then %v", uint32(m), readable, still)
				case !ok && now != old && m != hv.MSRTPR && m != hv.MSRICR:
					t.Fatalf("MSR %#x: a refused write of %#x changed %#x to %#x", uint32(m), val, old, now)
				case ok && stored[m] && now != val:
					t.Fatalf("MSR %#x: wrote %#x, read %#x", uint32(m), val, now)
				}
			}
		}
		// RAM comes back whole, but for what the hypervisor's writes to hidden
		// pages must never touch: all of it.
		g.Partition.Reset()
		if n := g.Partition.Places(); n != 0 {
			t.Errorf("%d places left", n)
		}
		for i := range guest.GPA(pages) {
			if readPage(t, g, first+i*guest.PageSize) != filled(0xD0+byte(i)) {
				t.Errorf("RAM at %v is not back", first+i*guest.PageSize)
			}
		}
	})
}
func FuzzHypercall(f *testing.F) {
	f.Add(uint64(0x1005D), uint64(5), uint64(0), []byte{})
	f.Add(uint64(0x5D), uint64(0x102000), uint64(0), []byte{5, 0, 0, 0, 1, 0})
	f.Add(uint64(0x5C), uint64(0x102000), uint64(0), []byte{6, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 240})
	f.Add(uint64(0x5C), uint64(0x102000), uint64(0), []byte{7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 16})
	f.Add(uint64(0x5C), uint64(1<<64-256), uint64(0), bytes.Repeat([]byte{0xFF}, 256))
	f.Add(uint64(0x8001), uint64(0), uint64(synictest.RAMSize-8), []byte{})
	f.Add(uint64(1<<64-1), uint64(1<<64-1), uint64(1<<64-1), []byte{})
	g := synictest.New(f, 1, func(c *synic.Config) { c.Logf = nil })
	g.BringUp(2)
	p := g.Partition
	box := &inbox{}
	events := &countingEvents{}
	reply := p.OpenMessagePort(0x99, 2, nil)
	for _, err := range []error{p.ConnectEvent(5, 4, events), p.ConnectMessage(6, box), p.ConnectMessage(7, &echo{reply})} {
		if err != nil {
			f.Fatal(err)
		}
	}
	legal := map[hv.Status]bool{
		hv.StatusSuccess: true, hv.StatusInvalidHypercallCode: true, hv.StatusInvalidHypercallInput: true, hv.StatusInvalidAlignment: true,
		hv.StatusInvalidParameter: true, hv.StatusInvalidConnectionID: true, hv.StatusInvalidPortID: true, hv.StatusInsufficientBuffers: true,
	}
	f.Fuzz(func(t *testing.T, in, a, b uint64, memory []byte) {
		g.T = t
		box.limit, box.got, events.flags = 1, nil, nil
		memory = memory[:min(len(memory), guest.PageSize)]
		if err := g.Memory.WriteAt(memory, g.VPs[0].InputPage()); err != nil {
			t.Fatal(err)
		}
		r := p.Hypercall(0, hv.Input(in), a, b)
		if !legal[r.Status()] || r != hv.MakeResult(r.Status(), 0) {
			t.Errorf("result %#x", uint64(r))
		}
		if n := len(box.got) + len(events.flags); n > 1 || n == 1 && r.Status() != hv.StatusSuccess {
			t.Errorf("%v, and the ports saw %d calls", r.Status(), n)
		}
		for _, m := range box.got {
			if m.Size > hv.MaxPayload || m.Type == 0 || m.Type>>31 != 0 {
				t.Errorf("message %+v", m)
			}
		}
		for {
			if _, ok := g.VPs[0].TakeMessage(2); !ok {
				break
			}
		}
	})
}
