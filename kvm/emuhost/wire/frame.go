package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Version is the protocol version. Both ends say it first; a difference ends the conversation, since a daemon may
// well be older than the binary that talks to it.
const Version = 2

const (
	// HeaderSize is the size of a frame's header in bytes: payload length (4), session (4), type (1), stream (1),
	// and two bytes that must be zero. All integers are little-endian.
	HeaderSize = 12

	// MaxPayload makes header and payload together 32 KiB, which is what the virtio console driver takes in one
	// write (port_fops_write in drivers/char/virtio_console.c).
	MaxPayload = 32<<10 - HeaderSize
)

// Type says what a frame is.
type Type uint8

// The types of frames, and who sends them.
const (
	TypeHello    Type = 1 + iota // Hello as JSON: PID 1 first, the daemon, PID 1; and client, daemon
	TypeExec                     // client: part of a Request; Stream is MoreFollows or LastPart
	TypeStarted                  // inside: the command runs
	TypeData                     // both: bytes of Stream
	TypeEOF                      // both: the sender of Stream has no more, or its receiver wants no more
	TypeCredit                   // both: uint32, bytes of Stream consumed
	TypeSignal                   // client: uint32, Linux signal number
	TypeResize                   // client: uint16 rows, uint16 columns
	TypeExit                     // inside: Exit as JSON; the session's last frame
	TypeKill                     // client (or the daemon when it is gone): end the command at once
	TypeShutdown                 // client to daemon, daemon to PID 1: power off
	TypeStatus                   // client: empty; daemon: its status as JSON
	TypeTick                     // daemon to PID 1: empty, of session 0, and ignored
	typeEnd
)

func (t Type) String() string {
	names := [...]string{"invalid", "hello", "exec", "started", "data", "eof", "credit", "signal", "resize", "exit", "kill", "shutdown", "status", "tick"}
	if int(t) < len(names) {
		return names[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Stream numbers a session's byte streams as file descriptors do.
type Stream uint8

// The streams of a session.
const (
	Stdin Stream = iota
	Stdout
	Stderr
	streamEnd
)

// Values of Stream in a frame of TypeExec.
const (
	LastPart    Stream = 0
	MoreFollows Stream = 1
)

// Frame is one unit on a link. Payload is valid until the next call of Reader.Next.
type Frame struct {
	Session uint32
	Type    Type
	Stream  Stream
	Payload []byte
}

// ErrFrame means that what arrived is not a frame. The link cannot be used again: frame borders are lost.
var ErrFrame = errors.New("malformed frame")

// Reader takes frames from a byte stream. It is not for concurrent use.
type Reader struct {
	r   *bufio.Reader
	buf [MaxPayload]byte
}

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, 64<<10)}
}

// Next returns the next frame. At the end of the stream, between two frames, it returns io.EOF; in the middle of one
// io.ErrUnexpectedEOF. The frame's payload is overwritten by the next call.
func (r *Reader) Next() (Frame, error) {
	var h [HeaderSize]byte
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		return Frame{}, err
	}
	n := binary.LittleEndian.Uint32(h[0:])
	f := Frame{
		Session: binary.LittleEndian.Uint32(h[4:]),
		Type:    Type(h[8]),
		Stream:  Stream(h[9]),
	}
	switch {
	case n > MaxPayload:
		return Frame{}, fmt.Errorf("%w: payload of %d bytes, at most %d", ErrFrame, n, MaxPayload)
	case f.Type == 0 || f.Type >= typeEnd:
		return Frame{}, fmt.Errorf("%w: %v", ErrFrame, f.Type)
	case f.Stream >= streamEnd:
		return Frame{}, fmt.Errorf("%w: stream %d", ErrFrame, f.Stream)
	case h[10] != 0 || h[11] != 0:
		return Frame{}, fmt.Errorf("%w: reserved bytes are not zero", ErrFrame)
	}
	f.Payload = r.buf[:n]
	if _, err := io.ReadFull(r.r, f.Payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return f, nil
}

// Writer puts frames on a byte stream, each with one Write. It is for concurrent use; a frame is never torn.
type Writer struct {
	mu  sync.Mutex
	w   io.Writer
	buf [HeaderSize + MaxPayload]byte // under mu
	err error                         // under mu; the first error stays
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w}
}

// Write sends a frame. It panics when the payload exceeds MaxPayload, which is a bug of the caller.
func (w *Writer) Write(f Frame) error {
	if len(f.Payload) > MaxPayload {
		panic(fmt.Sprintf("wire: payload of %d bytes", len(f.Payload)))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	b := w.buf[:HeaderSize+len(f.Payload)]
	binary.LittleEndian.PutUint32(b[0:], uint32(len(f.Payload)))
	binary.LittleEndian.PutUint32(b[4:], f.Session)
	b[8], b[9], b[10], b[11] = byte(f.Type), byte(f.Stream), 0, 0
	copy(b[HeaderSize:], f.Payload)
	_, w.err = w.w.Write(b)
	return w.err
}

// Uint32 decodes the payload of a Credit or Signal frame.
func (f Frame) Uint32() (uint32, error) {
	if len(f.Payload) != 4 {
		return 0, fmt.Errorf("%w: %v with %d bytes", ErrFrame, f.Type, len(f.Payload))
	}
	return binary.LittleEndian.Uint32(f.Payload), nil
}

// Size decodes the payload of a Resize frame.
func (f Frame) Size() (rows, cols uint16, err error) {
	if len(f.Payload) != 4 {
		return 0, 0, fmt.Errorf("%w: %v with %d bytes", ErrFrame, f.Type, len(f.Payload))
	}
	return binary.LittleEndian.Uint16(f.Payload), binary.LittleEndian.Uint16(f.Payload[2:]), nil
}

// Credit makes the frame that gives n bytes of a stream back.
func Credit(session uint32, s Stream, n int) Frame {
	return Frame{Session: session, Type: TypeCredit, Stream: s, Payload: binary.LittleEndian.AppendUint32(nil, uint32(n))}
}

// Signal makes the frame that delivers a signal.
func Signal(session uint32, sig uint32) Frame {
	return Frame{Session: session, Type: TypeSignal, Payload: binary.LittleEndian.AppendUint32(nil, sig)}
}

// Resize makes the frame that tells a terminal's size.
func Resize(session uint32, rows, cols uint16) Frame {
	p := binary.LittleEndian.AppendUint16(nil, rows)
	return Frame{Session: session, Type: TypeResize, Payload: binary.LittleEndian.AppendUint16(p, cols)}
}
