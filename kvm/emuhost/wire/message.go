package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

const (
	// MaxRequest bounds an encoded Request in bytes. Linux takes about a quarter of the stack limit for
	// arguments and environment together, 2 MiB by default; twice that leaves the verdict to execve.
	MaxRequest = 4 << 20

	// maxStrings bounds the entries of one list: each takes at least one byte, and execve refuses far fewer.
	maxStrings = 1 << 17
)

// Request asks for a command. Strings are bytes without zeros, as execve takes them; they need not be UTF-8.
type Request struct {
	Argv   []string
	Env    []string
	Dir    string // absolute
	UID    uint32
	GID    uint32
	Groups []uint32
	Umask  uint32
	Merge  bool // stderr goes where stdout goes, in order, and leaves as Stdout
	TTY    bool // a terminal for all three streams; its output leaves as Stdout
	Rows   uint16
	Cols   uint16
}

// ErrRequest means that a Request cannot be decoded.
var ErrRequest = errors.New("malformed request")

// Encode returns the wire form of a request.
func (q *Request) Encode() []byte {
	var b []byte
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	list := func(l []string) {
		b = binary.AppendUvarint(b, uint64(len(l)))
		for _, s := range l {
			str(s)
		}
	}
	list(q.Argv)
	list(q.Env)
	str(q.Dir)
	b = binary.AppendUvarint(b, uint64(q.UID))
	b = binary.AppendUvarint(b, uint64(q.GID))
	b = binary.AppendUvarint(b, uint64(len(q.Groups)))
	for _, g := range q.Groups {
		b = binary.AppendUvarint(b, uint64(g))
	}
	b = binary.AppendUvarint(b, uint64(q.Umask))
	for _, flag := range []bool{q.Merge, q.TTY} {
		if flag {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	b = binary.AppendUvarint(b, uint64(q.Rows))
	return binary.AppendUvarint(b, uint64(q.Cols))
}

// decoder takes values from the front of b; its error stays.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrRequest, what)
	}
	d.b = nil
}

// num takes a number not above limit.
func (d *decoder) num(limit uint64, what string) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit {
		d.fail(what)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) str(what string) string {
	n := d.num(uint64(len(d.b)), what)
	if n > uint64(len(d.b)) {
		d.fail(what)
		return ""
	}
	s := d.b[:n]
	for _, c := range s {
		if c == 0 {
			d.fail(what + " holds a zero byte")
			return ""
		}
	}
	d.b = d.b[n:]
	return string(s)
}

func (d *decoder) list(what string) []string {
	n := d.num(maxStrings, what)
	var l []string // grown by what is there, never by what is claimed
	for i := uint64(0); i < n && d.err == nil; i++ {
		l = append(l, d.str(what))
	}
	return l
}

// DecodeRequest is the inverse of Encode. It refuses what Encode cannot have produced, and an empty Argv.
func DecodeRequest(b []byte) (*Request, error) {
	if len(b) > MaxRequest {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrRequest, len(b), MaxRequest)
	}
	d := decoder{b: b}
	const max32 = 1<<32 - 1
	q := &Request{
		Argv: d.list("argv"),
		Env:  d.list("env"),
		Dir:  d.str("dir"),
		UID:  uint32(d.num(max32, "uid")),
		GID:  uint32(d.num(max32, "gid")),
	}
	const maxGroups = 65536 // NGROUPS_MAX
	n := d.num(maxGroups, "groups")
	for i := uint64(0); i < n && d.err == nil; i++ {
		q.Groups = append(q.Groups, uint32(d.num(max32, "group")))
	}
	q.Umask = uint32(d.num(0o777, "umask"))
	q.Merge = d.num(1, "merge") == 1
	q.TTY = d.num(1, "tty") == 1
	q.Rows = uint16(d.num(1<<16-1, "rows"))
	q.Cols = uint16(d.num(1<<16-1, "cols"))
	switch {
	case d.err != nil:
		return nil, d.err
	case len(d.b) != 0:
		return nil, fmt.Errorf("%w: %d bytes too many", ErrRequest, len(d.b))
	case len(q.Argv) == 0:
		return nil, fmt.Errorf("%w: no command", ErrRequest)
	}
	return q, nil
}

// Parts cuts an encoded request into the frames that carry it.
func Parts(session uint32, encoded []byte) []Frame {
	var fs []Frame
	for {
		n := min(len(encoded), MaxPayload)
		f := Frame{Session: session, Type: TypeExec, Stream: LastPart, Payload: encoded[:n]}
		encoded = encoded[n:]
		if len(encoded) > 0 {
			f.Stream = MoreFollows
		}
		fs = append(fs, f)
		if len(encoded) == 0 {
			return fs
		}
	}
}

// Hello is what the daemon tells PID 1, and what PID 1 answers when commands can run.
type Hello struct {
	Version int `json:"version"`

	// From the daemon.
	Name  string `json:"name,omitempty"`  // of the instance; becomes the host name
	Xfer  string `json:"xfer,omitempty"`  // where the writable share is mounted; absolute
	Views int    `json:"views,omitempty"` // how many mounts of the host's root there are
	Clock int64  `json:"clock,omitempty"` // wall clock, nanoseconds since 1970

	// From PID 1.
	Kernel string `json:"kernel,omitempty"` // release
	Error  string `json:"error,omitempty"`  // why nothing can run
}

// Exit is how a command ended.
type Exit struct {
	Code  int    `json:"code"`            // 0-255; 128 and the signal's number when one ended it
	Error string `json:"error,omitempty"` // why it was not run, or not to its end; Code is then 125, 126 or 127
}

// The codes of commands that were not run, as shells and env(1) use them.
const (
	CodeHost         = 125 // the emulated host's own failure
	CodeNoPermission = 126 // found, and cannot be executed
	CodeNotFound     = 127
)

// JSON makes a frame whose payload is v in JSON. It panics when v cannot be encoded or does not fit: callers cut
// long texts first.
func JSON(session uint32, t Type, v any) Frame {
	p, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("wire: %v: %v", t, err))
	}
	return Frame{Session: session, Type: t, Payload: p}
}

// Decode reads a JSON payload into v.
func (f Frame) Decode(v any) error {
	if err := json.Unmarshal(f.Payload, v); err != nil {
		return fmt.Errorf("%w: %v: %v", ErrFrame, f.Type, err)
	}
	return nil
}

// Cut shortens a text that someone else chose to what certainly fits in a frame.
func Cut(s string) string {
	const limit = 4096 // JSON may write a byte as six
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}
