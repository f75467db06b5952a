package proto

import "encoding/binary"

// OfferFlags are the flags of OFFERCHANNEL.
type OfferFlags uint16

// Offer flags.
const (
	OfferEnumerate    OfferFlags = 0x0001 // the guest's PnP creates a device interface
	OfferNamedPipe    OfferFlags = 0x0010 // UserDefined starts with a pipe type
	OfferLoopback     OfferFlags = 0x0100
	OfferParent       OfferFlags = 0x0200
	OfferMonitored    OfferFlags = 0x0400
	OfferTLNPI        OfferFlags = 0x2000 // hv_sock
	MonitorNone       uint8      = 0xFF
	OfferDedicated    uint16     = 1
	OfferMonitorValid uint8      = 1
)

// A PipeType says how a named pipe treats packet boundaries.
type PipeType uint32

// Pipe types.
const (
	PipeBytes    PipeType = 0
	PipeMessages PipeType = 4
)

// PipeUserDefined returns the user-defined part of a named pipe's offer: the
// pipe type and up to 112 bytes of the device's own. It panics on more, which
// only the host can ask for.
func PipeUserDefined(t PipeType, user []byte) [UserDataSize]byte {
	var u [UserDataSize]byte
	if len(user) > UserDataSize-8 {
		panic("proto: over 112 bytes of pipe user data")
	}
	binary.LittleEndian.PutUint32(u[:], uint32(t))
	copy(u[4:], user)
	return u
}

// PipeHeaderSize is the size in bytes of what precedes every payload in a
// named pipe of Hyper-V: the type PipeData and the size of what follows.
const PipeHeaderSize = 8

// PipeData is the type in a pipe header.
const PipeData uint32 = 1

// AppendPipeHeader appends the header of size payload bytes.
func AppendPipeHeader(b []byte, size uint32) []byte {
	b = binary.LittleEndian.AppendUint32(b, PipeData)
	return binary.LittleEndian.AppendUint32(b, size)
}

// PipePayload returns the bytes that the pipe header in packet payload p
// announces, and false if the header is missing, is not of type PipeData, or
// announces more than p holds (p may be longer: rings pad to 8 bytes).
func PipePayload(p []byte) ([]byte, bool) {
	if len(p) < PipeHeaderSize || binary.LittleEndian.Uint32(p) != PipeData {
		return nil, false
	}
	n := binary.LittleEndian.Uint32(p[4:])
	if uint64(n) > uint64(len(p)-PipeHeaderSize) {
		return nil, false
	}
	return p[PipeHeaderSize : PipeHeaderSize+n], true
}
