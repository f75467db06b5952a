package proto

import (
	"encoding/binary"
	"fmt"
)

// A PacketType is the kind of a packet in a ring.
type PacketType uint16

// Packet types that the ends of a channel exchange (Linux enum
// vmbus_packet_type); others do not occur.
const (
	PacketInBand        PacketType = 6
	PacketTransferPages PacketType = 7
	PacketGPADirect     PacketType = 9
	PacketCompletion    PacketType = 0xB
)

func (t PacketType) String() string {
	switch t {
	case PacketInBand:
		return "in-band"
	case PacketTransferPages:
		return "transfer-pages"
	case PacketGPADirect:
		return "GPA-direct"
	case PacketCompletion:
		return "completion"
	}
	return fmt.Sprintf("packet type %d", uint16(t))
}

// CompletionRequested is the only flag of a packet.
const CompletionRequested uint16 = 1

// Sizes in bytes. Lengths and offsets in a descriptor count units of 8.
const (
	DescriptorSize     = 16 // in-band, completion
	TransferHeaderSize = 24 // DescriptorSize and the fields before the ranges
	TransferRangeSize  = 8
	GPADirectSize      = 24 // DescriptorSize and the fields before the ranges
	GPARangeSize       = 8  // and 8 per page number
	TrailerSize        = 8  // after every packet, not counted by its length
)

// Transaction ids with a meaning of their own in Linux.
const (
	TransactionNone        uint64 = 0                  // unsolicited
	TransactionNoRequestor uint64 = 0xFFFFFFFFFFFFFFFF // U64_MAX
	TransactionError       uint64 = 0xFFFFFFFFFFFFFFFE
	TransactionNoResponse  uint64 = 0xFFFFFFFFFFFFFFFD // storvsc initialisation
	TransactionReset       uint64 = 0xFFFFFFFFFFFFFFFC // storvsc bus reset
)

// A Descriptor starts every packet.
type Descriptor struct {
	Type          PacketType
	Offset8       uint16 // start of the payload
	Length8       uint16 // all but the trailer
	Flags         uint16
	TransactionID uint64
}

// DecodeDescriptor reads the first DescriptorSize bytes of b, which must be
// there.
func DecodeDescriptor(b []byte) Descriptor {
	_ = b[DescriptorSize-1]
	return Descriptor{
		Type:          PacketType(binary.LittleEndian.Uint16(b)),
		Offset8:       binary.LittleEndian.Uint16(b[2:]),
		Length8:       binary.LittleEndian.Uint16(b[4:]),
		Flags:         binary.LittleEndian.Uint16(b[6:]),
		TransactionID: binary.LittleEndian.Uint64(b[8:]),
	}
}

// Append encodes the descriptor.
func (d Descriptor) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(d.Type))
	b = binary.LittleEndian.AppendUint16(b, d.Offset8)
	b = binary.LittleEndian.AppendUint16(b, d.Length8)
	b = binary.LittleEndian.AppendUint16(b, d.Flags)
	return binary.LittleEndian.AppendUint64(b, d.TransactionID)
}

// A TransferRange is a run of bytes in the GPADL that a transfer-pages packet
// names by its set id.
type TransferRange struct {
	ByteCount  uint32
	ByteOffset uint32
}
