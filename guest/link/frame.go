package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A Conn is a reliable byte stream. Close unblocks Read and Write.
type Conn interface {
	io.Reader
	io.Writer
	io.Closer
}

// ProtocolVersion is the version that HELLO carries. An agent and a monitor of
// one build always agree; the check catches an image built by another one.
const ProtocolVersion = 1

// ErrCorrupt reports that the peer broke the protocol. It latches: the link is
// of no further use.
var ErrCorrupt = errors.New("agent link corrupt")

// corruptf builds an error that says how the peer broke the protocol.
func corruptf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// A Type is the kind of a frame.
type Type uint8

// The frame types. "g->h" frames come from the guest's agent, "h->g" frames
// from the host.
const (
	TypeHello   Type = 1  // g->h: arg protocol version, payload JSON Hello; first frame, once
	TypeStart   Type = 2  // h->g: payload JSON Job
	TypeData    Type = 3  // payload 1..MaxPayload bytes of a stream
	TypeEOF     Type = 4  // the stream ended; against its direction: its reader is gone
	TypeCredit  Type = 5  // arg: bytes of credit returned to the stream's sender
	TypeResize  Type = 6  // h->g: arg rows<<16 | columns
	TypeSignal  Type = 7  // h->g: arg signal number
	TypeStarted Type = 8  // g->h: the command runs; arg CLOCK_BOOTTIME in ns
	TypeExit    Type = 9  // g->h: arg exit code, payload JSON Exit; last of its direction but BYE
	TypeInfo    Type = 10 // g->h: payload JSON Info
	TypeBye     Type = 11 // both: nothing follows
)

var typeNames = [...]string{1: "HELLO", "START", "DATA", "EOF", "CREDIT", "RESIZE", "SIGNAL", "STARTED", "EXIT", "INFO", "BYE"}

func (t Type) String() string {
	if int(t) < len(typeNames) && typeNames[t] != "" {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// A Stream is one of the command's standard streams.
type Stream uint8

const (
	Stdin   Stream = 0 // h->g
	Stdout  Stream = 1 // g->h; carries both directions of output when the job has a tty
	Stderr  Stream = 2 // g->h
	streams        = 3
)

func (s Stream) String() string {
	if s < streams {
		return [...]string{"stdin", "stdout", "stderr"}[s]
	}
	return fmt.Sprintf("stream %d", uint8(s))
}

const (
	// HeaderSize is the size of a frame header in bytes.
	HeaderSize = 16
	// MaxPayload bounds the payload of every frame in bytes: large enough that
	// a pipe's worth of output is one frame, small enough to buffer anywhere.
	MaxPayload = 64 << 10
	// Credit is what the sender of a stream may have in flight in bytes, each
	// frame counted with its header. The receiver buffers no more than this
	// per stream. It is four full frames, so that one can be consumed while
	// others travel.
	Credit = 256 << 10
	// creditBatch is the consumed amount at which a receiver returns credit.
	// Less than that outstanding still leaves the sender three quarters.
	creditBatch = 64 << 10
	// maxSignal is the highest signal number of Linux.
	maxSignal = 64
)

// A Header is the fixed part of a frame, 16 bytes little endian on the wire:
// u8 type, u8 stream, u16 zero, u32 payload length, u64 arg.
type Header struct {
	Type   Type
	Stream Stream
	Length uint32
	Arg    uint64
}

// put stores the header in the first HeaderSize bytes of b.
func (h Header) put(b []byte) {
	b[0], b[1], b[2], b[3] = byte(h.Type), byte(h.Stream), 0, 0
	binary.LittleEndian.PutUint32(b[4:], h.Length)
	binary.LittleEndian.PutUint64(b[8:], h.Arg)
}

// A side is one end of the link.
type side uint8

const (
	host side = iota
	guestSide
)

// frameRule is what a well-formed header of one type looks like.
type frameRule struct {
	from    [2]bool // who may send it, by side
	streams bool    // the stream field is in use
	min     uint32  // payload length in bytes
	max     uint32
	maxArg  uint64
}

var frameRules = [...]frameRule{
	TypeHello:   {from: [2]bool{guestSide: true}, min: 2, max: MaxPayload, maxArg: 1<<64 - 1},
	TypeStart:   {from: [2]bool{host: true}, min: 2, max: MaxPayload},
	TypeData:    {from: [2]bool{true, true}, streams: true, min: 1, max: MaxPayload},
	TypeEOF:     {from: [2]bool{true, true}, streams: true},
	TypeCredit:  {from: [2]bool{true, true}, streams: true, maxArg: Credit},
	TypeResize:  {from: [2]bool{host: true}, maxArg: 1<<32 - 1},
	TypeSignal:  {from: [2]bool{host: true}, maxArg: maxSignal},
	TypeStarted: {from: [2]bool{guestSide: true}, maxArg: 1<<64 - 1},
	TypeExit:    {from: [2]bool{guestSide: true}, min: 2, max: MaxPayload, maxArg: 255},
	TypeInfo:    {from: [2]bool{guestSide: true}, min: 2, max: MaxPayload},
	TypeBye:     {from: [2]bool{true, true}},
}

// parseHeader decodes the header that peer sent and checks all that one header
// alone can tell: reserved bits, type, direction, stream, length and argument.
func parseHeader(b *[HeaderSize]byte, peer side) (Header, error) {
	h := Header{
		Type:   Type(b[0]),
		Stream: Stream(b[1]),
		Length: binary.LittleEndian.Uint32(b[4:]),
		Arg:    binary.LittleEndian.Uint64(b[8:]),
	}
	if b[2] != 0 || b[3] != 0 {
		return h, corruptf("%v frame with reserved bits %#02x%02x", h.Type, b[3], b[2])
	}
	if int(h.Type) >= len(frameRules) || h.Type == 0 {
		return h, corruptf("frame of unknown %v", h.Type)
	}
	r := &frameRules[h.Type]
	if !r.from[peer] {
		return h, corruptf("%v frame in the wrong direction", h.Type)
	}
	if h.Stream >= streams || !r.streams && h.Stream != 0 {
		return h, corruptf("%v frame for %v", h.Type, h.Stream)
	}
	if h.Length < r.min || h.Length > r.max {
		return h, corruptf("%v frame of %d bytes", h.Type, h.Length)
	}
	if h.Arg > r.maxArg {
		return h, corruptf("%v frame with argument %#x", h.Type, h.Arg)
	}
	// A stream's bytes flow one way and its credit the other. EOF goes both
	// ways: along the bytes it is their end, against them the reader's.
	fromGuest := h.Stream != Stdin
	if h.Type == TypeData && fromGuest != (peer == guestSide) ||
		h.Type == TypeCredit && fromGuest == (peer == guestSide) {
		return h, corruptf("%v frame for %v in the wrong direction", h.Type, h.Stream)
	}
	return h, nil
}

// A frameReader cuts the peer's byte stream into frames.
type frameReader struct {
	r    io.Reader
	peer side
	head [HeaderSize]byte
	buf  []byte // grown to the largest payload seen, at most MaxPayload
}

// next returns the next frame. Its payload is valid until the next call. A
// stream that ends between frames is io.EOF; inside one, io.ErrUnexpectedEOF.
func (f *frameReader) next() (Header, []byte, error) {
	if _, err := io.ReadFull(f.r, f.head[:]); err != nil {
		return Header{}, nil, err
	}
	h, err := parseHeader(&f.head, f.peer)
	if err != nil {
		return h, nil, err
	}
	if int(h.Length) > cap(f.buf) {
		f.buf = make([]byte, max(h.Length, 4096))
	}
	p := f.buf[:h.Length]
	if _, err := io.ReadFull(f.r, p); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return h, nil, err
	}
	return h, p, nil
}

// appendFrame appends a whole frame to b.
func appendFrame(b []byte, h Header, payload []byte) []byte {
	h.Length = uint32(len(payload))
	var head [HeaderSize]byte
	h.put(head[:])
	return append(append(b, head[:]...), payload...)
}
