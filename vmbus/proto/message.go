package proto

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A MessageType is the first word of a channel message.
type MessageType uint32

// Channel message types (Linux enum vmbus_channel_message_type). The arrow
// tells who sends it: guest to host or host to guest.
const (
	MsgInvalid              MessageType = 0
	MsgOfferChannel         MessageType = 1  // h→g
	MsgRescindChannelOffer  MessageType = 2  // h→g
	MsgRequestOffers        MessageType = 3  // g→h
	MsgAllOffersDelivered   MessageType = 4  // h→g
	MsgOpenChannel          MessageType = 5  // g→h
	MsgOpenChannelResult    MessageType = 6  // h→g
	MsgCloseChannel         MessageType = 7  // g→h
	MsgGPADLHeader          MessageType = 8  // g→h
	MsgGPADLBody            MessageType = 9  // g→h
	MsgGPADLCreated         MessageType = 10 // h→g
	MsgGPADLTeardown        MessageType = 11 // g→h
	MsgGPADLTorndown        MessageType = 12 // h→g
	MsgRelIDReleased        MessageType = 13 // g→h
	MsgInitiateContact      MessageType = 14 // g→h
	MsgVersionResponse      MessageType = 15 // h→g
	MsgUnload               MessageType = 16 // g→h
	MsgUnloadResponse       MessageType = 17 // h→g
	MsgOpenReserved         MessageType = 18 // g→h
	MsgCloseReserved        MessageType = 19 // g→h
	MsgCloseReservedResult  MessageType = 20 // h→g
	MsgTLConnectRequest     MessageType = 21 // g→h
	MsgModifyChannel        MessageType = 22 // g→h
	MsgTLConnectResult      MessageType = 23 // h→g
	MsgModifyChannelResult  MessageType = 24 // h→g
	MsgModifyConnection     MessageType = 25 // g→h, 6.0
	MsgModifyConnectionDone MessageType = 26 // h→g, 6.0
	MsgPause                MessageType = 27 // g→h, 6.0
	MsgPauseResponse        MessageType = 28 // h→g, 6.0
	MsgResume               MessageType = 29 // g→h, 6.0
)

var messageNames = [...]string{
	"invalid", "OFFERCHANNEL", "RESCIND_CHANNELOFFER", "REQUESTOFFERS", "ALLOFFERS_DELIVERED",
	"OPENCHANNEL", "OPENCHANNEL_RESULT", "CLOSECHANNEL", "GPADL_HEADER", "GPADL_BODY",
	"GPADL_CREATED", "GPADL_TEARDOWN", "GPADL_TORNDOWN", "RELID_RELEASED", "INITIATE_CONTACT",
	"VERSION_RESPONSE", "UNLOAD", "UNLOAD_RESPONSE", "OPEN_RESERVED", "CLOSE_RESERVED",
	"CLOSE_RESERVED_RESPONSE", "TL_CONNECT_REQUEST", "MODIFYCHANNEL", "TL_CONNECT_RESULT",
	"MODIFYCHANNEL_RESPONSE", "MODIFY_CONNECTION", "MODIFY_CONNECTION_RESPONSE", "PAUSE",
	"PAUSE_RESPONSE", "RESUME",
}

func (t MessageType) String() string {
	if int(t) < len(messageNames) {
		return messageNames[t]
	}
	return fmt.Sprintf("message type %d", uint32(t))
}

// HeaderSize is the size in bytes of what starts every channel message: its
// type and four bytes of padding.
const HeaderSize = 8

// ErrShort reports a message with fewer bytes than its type has.
var ErrShort = errors.New("channel message too short")

// A Message is the fixed part of a channel message, without the header.
type Message interface{ MessageType() MessageType }

// TypeOf returns the type of the message in b, and false if b does not even
// hold a header.
func TypeOf(b []byte) (MessageType, bool) {
	if len(b) < HeaderSize {
		return MsgInvalid, false
	}
	return MessageType(binary.LittleEndian.Uint32(b)), true
}

// Size returns the size in bytes of m with its header.
func Size(m Message) int { return HeaderSize + binary.Size(m) }

// Append encodes header and fixed part of m at the end of b. m may be a struct
// of this package or a pointer to one.
func Append(b []byte, m Message) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(m.MessageType()))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b, err := binary.Append(b, binary.LittleEndian, m)
	if err != nil {
		panic(fmt.Sprintf("proto: %T is not a wire struct: %v", m, err))
	}
	return b
}

// Encode returns m as a message.
func Encode(m Message) []byte { return Append(nil, m) }

// Decode reads the message b into m, which must be a pointer, and returns what
// follows the fixed part: PFNs, or the padding that some firmware adds up to
// 240 bytes. The caller has chosen m by TypeOf. A message shorter than its
// fixed part is ErrShort, and m is untouched then.
func Decode(b []byte, m Message) (rest []byte, err error) {
	n := Size(m)
	if len(b) < n {
		return nil, fmt.Errorf("%w: %v of %d bytes, want %d", ErrShort, m.MessageType(), len(b), n)
	}
	if t, _ := TypeOf(b); t != m.MessageType() {
		panic(fmt.Sprintf("proto: decoding %v as %v", t, m.MessageType()))
	}
	if _, err := binary.Decode(b[HeaderSize:], binary.LittleEndian, m); err != nil {
		panic(fmt.Sprintf("proto: %T is not a wire struct: %v", m, err))
	}
	return b[n:], nil
}
