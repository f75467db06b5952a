package hv

import "encoding/binary"

// A HypercallCode selects a hypercall.
type HypercallCode uint16

// Hypercall codes.
const (
	CallNotifyLongSpinWait   HypercallCode = 0x0008
	CallCreatePort           HypercallCode = 0x0057
	CallDeletePort           HypercallCode = 0x0058
	CallConnectPort          HypercallCode = 0x0059
	CallDisconnectPort       HypercallCode = 0x005B
	CallPostMessage          HypercallCode = 0x005C
	CallSignalEvent          HypercallCode = 0x005D
	CallExtQueryCapabilities HypercallCode = 0x8001
)

// An Input is the hypercall input value (TLFS "Hypercall Inputs").
type Input uint64

// Fields of the input value.
const (
	InputFast   Input = 1 << 16
	InputNested Input = 1 << 31 // for a hypervisor below; reserved where there is none

	// InputReserved are the RsvdZ bits.
	InputReserved Input = 0xF<<27 | 0xF<<44 | 0xF<<60

	// FastSignalEvent is the input value of a fast HvCallSignalEvent with no
	// other field set: what guests use for every signal.
	FastSignalEvent = Input(CallSignalEvent) | InputFast
)

// MakeInput returns the input value of a simple call without variable header.
func MakeInput(code HypercallCode, fast bool) Input {
	in := Input(code)
	if fast {
		in |= InputFast
	}
	return in
}

// WithReps returns in with its rep count and rep start index set; both are
// cut to 12 bits.
func (in Input) WithReps(count, start uint16) Input {
	return in&^(0xFFF<<32|0xFFF<<48) | Input(count&0xFFF)<<32 | Input(start&0xFFF)<<48
}

// WithVarSize returns in with its variable header size set, in units of 8
// bytes, cut to 10 bits.
func (in Input) WithVarSize(qwords uint16) Input {
	return in&^(0x3FF<<17) | Input(qwords&0x3FF)<<17
}

// Code returns the call code.
func (in Input) Code() HypercallCode { return HypercallCode(in) }

// Fast reports whether the input is in registers.
func (in Input) Fast() bool { return in&InputFast != 0 }

// VarSize returns the size of the variable header in units of 8 bytes.
func (in Input) VarSize() uint16 { return uint16(in>>17) & 0x3FF }

// RepCount returns the number of list elements.
func (in Input) RepCount() uint16 { return uint16(in>>32) & 0xFFF }

// RepStart returns the index of the first element to process.
func (in Input) RepStart() uint16 { return uint16(in>>48) & 0xFFF }

// A Result is the hypercall result value: status in bits 15:0, the number of
// completed reps in bits 43:32.
type Result uint64

// MakeResult builds a result value; reps is cut to 12 bits.
func MakeResult(s Status, reps uint16) Result {
	return Result(s) | Result(reps&0xFFF)<<32
}

// Status returns the status field.
func (r Result) Status() Status { return Status(r) }

// Reps returns the number of list elements that were completed.
func (r Result) Reps() uint16 { return uint16(r>>32) & 0xFFF }

// PostMessageSize is the size in bytes of the input of HvCallPostMessage.
const PostMessageSize = 256

// PostMessageInput is the input of HvCallPostMessage.
type PostMessageInput struct {
	ConnectionID ConnectionID
	Reserved     uint32
	MessageType  MessageType
	PayloadSize  uint32
	Payload      [MaxPayload]byte
}

// DecodePostMessage decodes the input page's copy. It checks nothing.
func DecodePostMessage(b *[PostMessageSize]byte) (in PostMessageInput) {
	in.ConnectionID = ConnectionID(binary.LittleEndian.Uint32(b[0:]))
	in.Reserved = binary.LittleEndian.Uint32(b[4:])
	in.MessageType = MessageType(binary.LittleEndian.Uint32(b[8:]))
	in.PayloadSize = binary.LittleEndian.Uint32(b[12:])
	copy(in.Payload[:], b[16:])
	return in
}

// Put encodes in into b: what a guest does.
func (in *PostMessageInput) Put(b *[PostMessageSize]byte) {
	binary.LittleEndian.PutUint32(b[0:], uint32(in.ConnectionID))
	binary.LittleEndian.PutUint32(b[4:], in.Reserved)
	binary.LittleEndian.PutUint32(b[8:], uint32(in.MessageType))
	binary.LittleEndian.PutUint32(b[12:], in.PayloadSize)
	copy(b[16:], in.Payload[:])
}

// A SignalEventInput is the input of HvCallSignalEvent.
type SignalEventInput struct {
	ConnectionID ConnectionID
	FlagNumber   uint16 // relative to the port's first flag
	Reserved     uint16
}

// DecodeSignalEvent decodes the 8 bytes of the input, which is how they lie
// in a register of the fast form as well.
func DecodeSignalEvent(v uint64) SignalEventInput {
	return SignalEventInput{ConnectionID(v), uint16(v >> 32), uint16(v >> 48)}
}

// Uint64 encodes in.
func (in SignalEventInput) Uint64() uint64 {
	return uint64(in.ConnectionID) | uint64(in.FlagNumber)<<32 | uint64(in.Reserved)<<48
}
