package hv

// A VPIndex is the hypervisor's number of a virtual processor inside its
// partition, counted from 0.
type VPIndex uint32

// VPAny as the target of a port lets the hypervisor choose the processor.
const VPAny VPIndex = 0xFFFFFFFF

// A PartitionID names a partition. PartitionSelf is the caller's own.
type PartitionID uint64

// PartitionSelf is HV_PARTITION_ID_SELF.
const PartitionSelf PartitionID = 0xFFFFFFFFFFFFFFFF

// A ConnectionID names the guest's end of a connection to a port. Only the
// low 24 bits may be set.
type ConnectionID uint32

// A PortID names a port. Only the low 24 bits may be set.
type PortID uint32

// IDMask covers the bits of a connection or port id that may be set.
const IDMask = 0x00FFFFFF

// An MSR is the number of a model-specific register.
type MSR uint32

// A MessageType is the first field of a SynIC message. 0 means an empty slot;
// bit 31 is set for messages of the hypervisor itself.
type MessageType uint32

// Message types (TLFS, HV_MESSAGE_TYPE).
const (
	MessageNone         MessageType = 0
	MessageVMBus        MessageType = 1 // what both ends of VMBus use
	MessageTimerExpired MessageType = 0x80000010
)

// MaxPayload is the most payload bytes of a message.
const MaxPayload = 240

// A Message is a SynIC message apart from its slot.
type Message struct {
	Type    MessageType
	Origin  uint64 // port id for guest messages, 0 for timers
	Size    uint8  // valid bytes of Payload, at most MaxPayload
	Payload [MaxPayload]byte
}

// Bytes returns the valid part of the payload. It aliases m.
func (m *Message) Bytes() []byte { return m.Payload[:m.Size] }

// NewMessage builds a message of the given type. It panics if the payload is
// longer than MaxPayload: the caller built it.
func NewMessage(t MessageType, payload []byte) Message {
	if len(payload) > MaxPayload {
		panic("hv: message payload over 240 bytes")
	}
	m := Message{Type: t, Size: uint8(len(payload))}
	copy(m.Payload[:], payload)
	return m
}
