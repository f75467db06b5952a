package ic

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hvpost/hvpost/vmbus/proto"
)

// A MessageType names the service that a message belongs to (Linux ICMSGTYPE).
type MessageType uint16

// Message types.
const (
	MsgNegotiate MessageType = 0
	MsgHeartbeat MessageType = 1
	MsgKVP       MessageType = 2
	MsgShutdown  MessageType = 3
	MsgTimeSync  MessageType = 4
	MsgVSS       MessageType = 5
	MsgFcopy     MessageType = 7
)

// Flags of a message (Linux ICMSGHDRFLAG).
const (
	FlagTransaction uint8 = 1
	FlagRequest     uint8 = 2
	FlagResponse    uint8 = 4
)

// A Status is the guest's answer to a request: an HRESULT.
type Status uint32

// Status values.
const (
	StatusOK           Status = 0
	StatusFail         Status = 0x80004005
	StatusNotSupported Status = 0x80070032
	StatusInvalid      Status = 0x80070057
	StatusNotConnected Status = 0x8007048F
	StatusLocked       Status = 0x800704F7
)

func (s Status) Error() string {
	switch s {
	case StatusFail:
		return "guest failed (0x80004005)"
	case StatusNotSupported:
		return "guest does not support it (0x80070032)"
	case StatusInvalid:
		return "guest found it invalid (0x80070057)"
	case StatusNotConnected:
		return "guest's service is not connected (0x8007048f)"
	case StatusLocked:
		return "guest is locked (0x800704f7)"
	}
	return fmt.Sprintf("guest answered %#x", uint32(s))
}

// A Version of the framework or of a service's messages.
type Version struct{ Major, Minor uint16 }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// A Header starts every message, after the pipe header (Linux struct
// icmsg_hdr).
type Header struct {
	Framework     Version
	Type          MessageType
	Message       Version
	BodySize      uint16 // bytes
	Status        Status
	TransactionID uint8
	Flags         uint8
	_             [2]byte
}

// HeaderSize is the size of a Header in bytes.
const HeaderSize = 20

// ErrMessage reports a message of the guest that makes no sense.
var ErrMessage = errors.New("malformed integration component message")

// Encode returns the payload of the packet that carries a message: pipe
// header, h with the size of body, and body.
func Encode(h Header, body []byte) []byte {
	h.BodySize = uint16(len(body))
	b := proto.AppendPipeHeader(make([]byte, 0, proto.PipeHeaderSize+HeaderSize+len(body)), uint32(HeaderSize+len(body)))
	b, err := binary.Append(b, binary.LittleEndian, h)
	if err != nil {
		panic(err)
	}
	return append(b, body...)
}

// Decode reads the payload of a packet. The body is as long as its header
// says, and aliases the payload.
func Decode(payload []byte) (h Header, body []byte, err error) {
	p, ok := proto.PipePayload(payload)
	if !ok || len(p) < HeaderSize {
		return h, nil, fmt.Errorf("%w: %d bytes", ErrMessage, len(payload))
	}
	if _, err := binary.Decode(p, binary.LittleEndian, &h); err != nil {
		panic(err)
	}
	body = p[HeaderSize:]
	if int(h.BodySize) > len(body) {
		return h, nil, fmt.Errorf("%w: body of %d bytes in %d", ErrMessage, h.BodySize, len(body))
	}
	return h, body[:h.BodySize], nil
}
