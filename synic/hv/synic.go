package hv

import (
	"encoding/binary"
	"math/bits"
)

// SINTCount is the number of synthetic interrupt sources of a VP.
const SINTCount = 16

// A SINT is the value of a synthetic interrupt source register (TLFS "SINTx
// Registers").
type SINT uint64

// Bits of a SINT register. The rest is RsvdP.
const (
	SINTVectorMask SINT = 0xFF
	SINTMasked     SINT = 1 << 16
	SINTAutoEOI    SINT = 1 << 17
	SINTPolling    SINT = 1 << 18 // with FeatureSINTPolling

	// SINTReset is the value at VP creation and reset.
	SINTReset = SINTMasked

	// FirstVector is the lowest legal interrupt vector; those below are the
	// processor's exceptions.
	FirstVector = 16
)

// Vector returns the interrupt vector.
func (s SINT) Vector() uint8 { return uint8(s) }

// Masked reports whether the source is masked.
func (s SINT) Masked() bool { return s&SINTMasked != 0 }

// AutoEOI reports whether an interrupt of the source ends itself when it is
// delivered.
func (s SINT) AutoEOI() bool { return s&SINTAutoEOI != 0 }

// Polling reports whether the source is unmasked but never interrupts.
func (s SINT) Polling() bool { return s&SINTPolling != 0 }

// The message page: one slot per SINT (TLFS "SIM Page").
const (
	SlotSize = 256

	SlotType    = 0  // u32; 0: empty
	SlotSizeOff = 4  // u8 payload size, in one 32-bit word with the flags
	SlotFlags   = 5  // u8
	SlotOrigin  = 8  // u64
	SlotPayload = 16 // MaxPayload bytes

	// SlotPending is the MessagePending flag as it lies in the 32-bit word at
	// SlotSizeOff.
	SlotPending uint32 = 1 << 8
)

// SlotOffset returns the offset of the slot of a SINT in the message page.
func SlotOffset(sint uint8) uint32 { return uint32(sint) * SlotSize }

// DecodeSlot decodes a copy of a slot, and reports its pending flag. A size
// beyond MaxPayload is cut to it.
func DecodeSlot(b *[SlotSize]byte) (m Message, pending bool) {
	m.Type = MessageType(binary.LittleEndian.Uint32(b[SlotType:]))
	m.Size = min(b[SlotSizeOff], MaxPayload)
	m.Origin = binary.LittleEndian.Uint64(b[SlotOrigin:])
	copy(m.Payload[:m.Size], b[SlotPayload:])
	return m, b[SlotFlags]&1 != 0
}

// The event flags page: 256 bytes, thus 2048 flags, per SINT (TLFS "SIEF
// Page"). Flag f is bit f&7 of byte f/8.
const (
	EventFlagCount   = 2048
	EventFlagsSize   = EventFlagCount / 8
	eventFlagsPerU32 = 32
)

// EventFlagWord returns where flag f of a SINT lies in the event flags page:
// the offset of its aligned 32-bit word and the bit in that word.
func EventFlagWord(sint uint8, f uint16) (off uint32, mask uint32) {
	return uint32(sint)*EventFlagsSize + uint32(f)/eventFlagsPerU32*4, 1 << (f % eventFlagsPerU32)
}

// TimerCount is the number of synthetic timers of a VP.
const TimerCount = 4

// A TimerConfig is the value of a synthetic timer's configuration register
// (TLFS "Synthetic Timer Configuration Register").
type TimerConfig uint64

// Bits of a timer configuration.
const (
	TimerEnabled    TimerConfig = 1 << 0
	TimerPeriodic   TimerConfig = 1 << 1
	TimerLazy       TimerConfig = 1 << 2
	TimerAutoEnable TimerConfig = 1 << 3
	TimerDirect     TimerConfig = 1 << 12 // with FeatureDirectTimers

	timerVectorShift = 4
	timerSINTShift   = 16

	// TimerReserved are the RsvdZ bits.
	TimerReserved TimerConfig = 0xFFFF_FFFF_FFF0_E000
)

// MakeTimerConfig adds a direct-mode vector and a SINT to flags.
func MakeTimerConfig(flags TimerConfig, vector, sint uint8) TimerConfig {
	return flags | TimerConfig(vector)<<timerVectorShift | TimerConfig(sint&0xF)<<timerSINTShift
}

// Vector returns the vector of direct mode.
func (c TimerConfig) Vector() uint8 { return uint8(c >> timerVectorShift) }

// SINT returns the source that timer messages go to, 0 to 15.
func (c TimerConfig) SINT() uint8 { return uint8(c>>timerSINTShift) & 0xF }

// A TimerPayload is the payload of a timer expiration message. Times are
// partition reference time in units of 100 ns.
type TimerPayload struct {
	Timer      uint32
	Expiration uint64 // when it was due
	Delivery   uint64 // when the message was placed in its slot
}

// TimerPayloadSize is the size of an encoded TimerPayload in bytes.
const TimerPayloadSize = 24

// Put encodes p into b.
func (p TimerPayload) Put(b *[TimerPayloadSize]byte) {
	binary.LittleEndian.PutUint32(b[0:], p.Timer)
	binary.LittleEndian.PutUint32(b[4:], 0)
	binary.LittleEndian.PutUint64(b[8:], p.Expiration)
	binary.LittleEndian.PutUint64(b[16:], p.Delivery)
}

// DecodeTimerPayload decodes a timer message's payload and reports whether it
// is long enough.
func DecodeTimerPayload(b []byte) (TimerPayload, bool) {
	if len(b) < TimerPayloadSize {
		return TimerPayload{}, false
	}
	return TimerPayload{
		Timer:      binary.LittleEndian.Uint32(b[0:]),
		Expiration: binary.LittleEndian.Uint64(b[8:]),
		Delivery:   binary.LittleEndian.Uint64(b[16:]),
	}, true
}

// ReferenceHz is the rate of partition reference time: units of 100 ns.
const ReferenceHz = 10_000_000

// A ReferenceTSC is the content of the partition reference TSC page (TLFS
// "Partition Reference TSC Mechanism").
type ReferenceTSC struct {
	Sequence uint32 // 0: the page is not valid, read TIME_REF_COUNT instead
	Scale    uint64 // 2^64 * ReferenceHz / TSC frequency
	Offset   int64  // in units of 100 ns
}

// Offsets in the reference TSC page; it holds nothing else.
const (
	TSCPageSequence = 0  // u32
	TSCPageScale    = 8  // u64
	TSCPageOffset   = 16 // s64
)

// TSCScale returns the scale for a TSC of hz, and false when the ratio does
// not fit the page: the TSC must be faster than reference time.
func TSCScale(hz uint64) (uint64, bool) {
	if hz <= ReferenceHz {
		return 0, false
	}
	q, _ := bits.Div64(ReferenceHz, 0, hz)
	return q, true
}

// Time converts a guest TSC value to reference time in units of 100 ns.
func (r ReferenceTSC) Time(tsc uint64) uint64 {
	hi, _ := bits.Mul64(tsc, r.Scale)
	return hi + uint64(r.Offset)
}
