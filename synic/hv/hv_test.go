package hv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/hvpost/hvpost/guest"
)

func TestMSRNumbers(t *testing.T) {
	for _, c := range []struct {
		got, want MSR
	}{
		{MSRSINT(0), 0x40000090}, {MSRSINT(15), 0x4000009F}, {MSRSINT15, 0x4000009F},
		{MSRSTIMERConfig(0), 0x400000B0}, {MSRSTIMERCount(0), 0x400000B1},
		{MSRSTIMERConfig(3), 0x400000B6}, {MSRSTIMERCount(3), 0x400000B7}, {MSRSTIMER3Count, 0x400000B7},
		{MSRCrashP0 + 4, MSRCrashP4}, {MSREOM, 0x40000084}, {MSRVPAssistPage, 0x40000073},
	} {
		if c.got != c.want {
			t.Errorf("MSR %#x, want %#x", c.got, c.want)
		}
	}
}

func TestPageRegister(t *testing.T) {
	r := MakePageRegister(0x12345678, true)
	if r != 0x12345001 || !r.Enabled() || r.Locked() || r.Base() != 0x12345000 {
		t.Errorf("register %#x: enabled %v, locked %v, base %v", uint64(r), r.Enabled(), r.Locked(), r.Base())
	}
	all := PageRegister(math.MaxUint64)
	if all.Clean() != 0xFFFF_FFFF_FFFF_F001 || all.CleanLockable() != 0xFFFF_FFFF_FFFF_F003 {
		t.Errorf("clean %#x, lockable %#x", uint64(all.Clean()), uint64(all.CleanLockable()))
	}
	if d := r.Disabled(); d.Enabled() || d.Base() != r.Base() {
		t.Errorf("disabled: %#x", uint64(d))
	}
}

// A timer message as the TLFS lays it out, and as KVM's selftests read it.
func TestGoldenTimerPayload(t *testing.T) {
	var b [TimerPayloadSize]byte
	for i := range b {
		b[i] = 0xEE
	}
	p := TimerPayload{Timer: 3, Expiration: 0x1122334455667788, Delivery: 0x99AABBCCDDEEFF00}
	p.Put(&b)
	want := []byte{3, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0xFF, 0xEE, 0xDD, 0xCC, 0xBB, 0xAA, 0x99}
	if !bytes.Equal(b[:], want) {
		t.Errorf("payload % x, want % x", b, want)
	}
	got, ok := DecodeTimerPayload(b[:])
	if !ok || got != p {
		t.Errorf("decoded %+v, %v", got, ok)
	}
	if _, ok := DecodeTimerPayload(b[:23]); ok {
		t.Error("a payload of 23 bytes was decoded")
	}
}

func TestGoldenPostMessage(t *testing.T) {
	in := PostMessageInput{ConnectionID: 0x040000, Reserved: 7, MessageType: MessageVMBus, PayloadSize: 240}
	for i := range in.Payload {
		in.Payload[i] = byte(i)
	}
	var b [PostMessageSize]byte
	in.Put(&b)
	want := []byte{0, 0, 4, 0, 7, 0, 0, 0, 1, 0, 0, 0, 240, 0, 0, 0, 0, 1, 2, 3}
	if !bytes.Equal(b[:20], want) || b[255] != 239 {
		t.Errorf("input % x ... %x", b[:20], b[255])
	}
	if got := DecodePostMessage(&b); got != in {
		t.Errorf("decoded %+v", got)
	}
}

func TestGoldenSignalEvent(t *testing.T) {
	const v = 0x0002_0001_00ABCDEF
	in := DecodeSignalEvent(v)
	if in != (SignalEventInput{ConnectionID: 0xABCDEF, FlagNumber: 1, Reserved: 2}) {
		t.Errorf("decoded %+v", in)
	}
	if in.Uint64() != v {
		t.Errorf("encoded %#x", in.Uint64())
	}
}

func TestGoldenSlot(t *testing.T) {
	var b [SlotSize]byte
	copy(b[:], []byte{1, 0, 0, 0, 3, 1, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 'a', 'b', 'c', 'd'})
	m, pending := DecodeSlot(&b)
	if m.Type != 1 || m.Size != 3 || !pending || m.Origin != 9 || string(m.Bytes()) != "abc" || m.Payload[3] != 0 {
		t.Errorf("decoded %+v, pending %v", m, pending)
	}
	b[SlotSizeOff] = 255 // a guest's mistake
	if m, _ := DecodeSlot(&b); m.Size != MaxPayload {
		t.Errorf("size %d", m.Size)
	}
	if binary.LittleEndian.Uint32(b[SlotSizeOff:])&SlotPending == 0 {
		t.Error("SlotPending is not the flag at SlotFlags")
	}
	if SlotOffset(15)+SlotSize != guest.PageSize || SlotPayload+MaxPayload != SlotSize {
		t.Error("slots do not fill the page")
	}
}

func TestInput(t *testing.T) {
	if in := MakeInput(CallSignalEvent, true); in != 0x1005D || FastSignalEvent != 0x1005D {
		t.Errorf("fast SignalEvent is %#x, %#x", uint64(in), uint64(FastSignalEvent))
	}
	rapid.Check(t, func(t *rapid.T) {
		v := Input(rapid.Uint64().Draw(t, "input"))
		back := MakeInput(v.Code(), v.Fast()).WithVarSize(v.VarSize()).WithReps(v.RepCount(), v.RepStart()) | v&(InputReserved|InputNested)
		if back != v {
			t.Fatalf("%#x came back as %#x", uint64(v), uint64(back))
		}
	})
	if r := MakeResult(StatusInvalidParameter, 0x1123); r != 0x123_0000_0005 || r.Reps() != 0x123 || r.Status() != StatusInvalidParameter {
		t.Errorf("result %#x", uint64(r))
	}
}

func TestEventFlagWord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sint := rapid.Uint8Range(0, SINTCount-1).Draw(t, "sint")
		f := rapid.Uint16Range(0, EventFlagCount-1).Draw(t, "flag")
		off, mask := EventFlagWord(sint, f)
		var page [guest.PageSize]byte
		binary.LittleEndian.PutUint32(page[off:], mask)
		if b := page[int(sint)*256+int(f)/8]; off%4 != 0 || b != 1<<(f&7) {
			t.Fatalf("SINT %d flag %d: word %#x mask %#x", sint, f, off, mask)
		}
	})
}

func TestTimerConfig(t *testing.T) {
	// What Linux writes in direct mode and with messages on SINT 2.
	if c := MakeTimerConfig(TimerEnabled|TimerAutoEnable|TimerDirect, 0xED, 0); c != 0x1ED9 || c.Vector() != 0xED {
		t.Errorf("direct: %#x", uint64(c))
	}
	if c := MakeTimerConfig(TimerEnabled|TimerAutoEnable, 0, 2); c != 0x20009 || c.SINT() != 2 {
		t.Errorf("message: %#x", uint64(c))
	}
	all := MakeTimerConfig(TimerEnabled|TimerPeriodic|TimerLazy|TimerAutoEnable|TimerDirect, 0xFF, 0xF)
	if all != ^TimerReserved {
		t.Errorf("defined bits %#x, reserved %#x", uint64(all), uint64(TimerReserved))
	}
}

func TestTSCScale(t *testing.T) {
	for _, hz := range []uint64{0, 1, ReferenceHz} {
		if s, ok := TSCScale(hz); ok {
			t.Errorf("%d Hz: scale %d", hz, s)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		hz := rapid.Uint64Range(ReferenceHz+1, 1<<40).Draw(t, "hz")
		tsc := rapid.Uint64().Draw(t, "tsc")
		offset := rapid.Int64().Draw(t, "offset")
		scale, ok := TSCScale(hz)
		if !ok {
			t.Fatal("no scale")
		}
		want := new(big.Int).Mul(new(big.Int).SetUint64(tsc), new(big.Int).SetUint64(scale))
		want.Rsh(want, 64)
		if got := (ReferenceTSC{Scale: scale}).Time(tsc); got != want.Uint64() {
			t.Fatalf("time %d, want %d", got, want)
		}
		if got := (ReferenceTSC{Scale: scale, Offset: offset}).Time(tsc); got != want.Uint64()+uint64(offset) {
			t.Fatal("offset is not added")
		}
		// The scale is the quotient rounded down: over the whole range of the
		// TSC the error is below one unit.
		exact := new(big.Int).Mul(new(big.Int).SetUint64(tsc), big.NewInt(ReferenceHz))
		exact.Div(exact, new(big.Int).SetUint64(hz))
		if d := exact.Sub(exact, want); d.Sign() < 0 || d.Cmp(big.NewInt(1)) > 0 {
			t.Fatalf("off by %d units", d)
		}
	})
}

func TestStatus(t *testing.T) {
	if s := StatusInsufficientBuffers.String(); s != "HV_STATUS_INSUFFICIENT_BUFFERS" || uint16(StatusInsufficientBuffers) != 0x13 {
		t.Errorf("0x13 is %s", s)
	}
	if s := Status(0x1234).Error(); s != "HV_STATUS(0x1234)" {
		t.Errorf("unknown status is %s", s)
	}
	var err error = StatusAccessDenied
	if !errors.Is(err, StatusAccessDenied) {
		t.Error("a status is not itself as an error")
	}
	seen := map[string]Status{}
	for s, n := range statusNames {
		if o, twice := seen[n]; twice {
			t.Errorf("%s is %#x and %#x", n, uint16(o), uint16(s))
		}
		seen[n] = s
	}
}

func TestPrivileges(t *testing.T) {
	p := AccessSynIC | PostMessages | SignalEvents
	if p.EAX() != 1<<2 || p.EBX() != 1<<4|1<<5 || !p.Has(PostMessages) || p.Has(PostMessages|CreatePort) || !p.Has(0) {
		t.Errorf("privileges %#x", uint64(p))
	}
	if EnableExtendedHypercalls.EBX() != 1<<20 || ConnectPort.EBX() != 1<<7 || CPUManagement.EBX() != 1<<12 {
		t.Error("EBX bits")
	}
}

func FuzzDecodeSlot(f *testing.F) {
	f.Add(make([]byte, SlotSize))
	f.Add(bytes.Repeat([]byte{0xFF}, SlotSize))
	f.Fuzz(func(t *testing.T, in []byte) {
		var b [SlotSize]byte
		copy(b[:], in)
		m, _ := DecodeSlot(&b)
		if !bytes.Equal(m.Bytes(), b[SlotPayload:SlotPayload+int(m.Size)]) {
			t.Error("payload differs")
		}
	})
}

func FuzzDecodePostMessage(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0xFF}, PostMessageSize))
	f.Fuzz(func(t *testing.T, in []byte) {
		var b, back [PostMessageSize]byte
		copy(b[:], in)
		m := DecodePostMessage(&b)
		m.Put(&back)
		if b != back {
			t.Error("decode and encode differ")
		}
	})
}
