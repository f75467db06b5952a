package link

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// GuestHandlers are the host's wishes. They run on the goroutine in Guest.Run
// and must return soon. Any may be nil.
type GuestHandlers struct {
	Start  func(Job)
	Signal func(signo int)
	Resize func(rows, cols uint16)
	// Closed says that the host reads the output stream no longer; the
	// command should see a broken pipe.
	Closed func(Stream)
	Bye    func()
}

// A Guest is the agent's end of the frame protocol. Its methods may be called
// from any goroutine.
type Guest struct {
	conn Conn
	h    GuestHandlers
	in   *inflow
	out  [streams]*outflow // Stdout, Stderr

	mu sync.Mutex // one frame at a time
}

// NewGuest returns the agent's end on conn. Nothing moves before Run or Hello.
func NewGuest(conn Conn, h GuestHandlers) *Guest {
	g := &Guest{conn: conn, h: h, in: newInflow()}
	for s := range g.out {
		g.out[s] = newOutflow()
	}
	return g
}

func (g *Guest) frame(h Header, payload []byte) error {
	b := appendFrame(make([]byte, 0, HeaderSize+len(payload)), h, payload)
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := g.conn.Write(b)
	return err
}

func (g *Guest) jsonFrame(h Header, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("agent link: %v: %w", h.Type, err)
	}
	if len(p) > MaxPayload {
		return fmt.Errorf("agent link: %v of %d bytes, at most %d", h.Type, len(p), MaxPayload)
	}
	return g.frame(h, p)
}

// Hello opens the conversation. It must come first and once.
func (g *Guest) Hello(v Hello) error {
	return g.jsonFrame(Header{Type: TypeHello, Arg: ProtocolVersion}, v)
}

// Started tells that the command runs, at CLOCK_BOOTTIME ns.
func (g *Guest) Started(ns uint64) error { return g.frame(Header{Type: TypeStarted, Arg: ns}, nil) }

// Info reports on the guest. What does not fit is cut off.
func (g *Guest) Info(v Info) error {
	for i := 0; i < len(v.Warnings); i++ {
		if len(v.Warnings[i]) > 1024 {
			v.Warnings[i] = v.Warnings[i][:1024]
		}
	}
	v.Warnings = v.Warnings[:min(len(v.Warnings), 16)]
	v.Devices = v.Devices[:min(len(v.Devices), 128)]
	return g.jsonFrame(Header{Type: TypeInfo}, v)
}

// Exit tells the result. Both output streams must have ended.
func (g *Guest) Exit(e Exit) error {
	if len(e.Error) > 4096 {
		e.Error = e.Error[:4096]
	}
	return g.jsonFrame(Header{Type: TypeExit, Arg: uint64(uint8(e.Code))}, e)
}

// Bye tells that nothing follows.
func (g *Guest) Bye() error { return g.frame(Header{Type: TypeBye}, nil) }

// PumpOutput sends r as output stream s, one frame per Read, until r ends or
// the host reads no longer. It does not send the end of the stream: see
// EndOutput. The error is r's, io.EOF excepted, or the link's.
func (g *Guest) PumpOutput(s Stream, r io.Reader) error {
	buf := make([]byte, HeaderSize+MaxPayload)
	f := g.out[s]
	for {
		// Credit first: bytes that were read have nowhere else to stay.
		room, ok := f.wait()
		if !ok {
			return io.ErrClosedPipe
		}
		n, rerr := r.Read(buf[HeaderSize : HeaderSize+room])
		if n > 0 {
			f.spend(n)
			Header{Type: TypeData, Stream: s, Length: uint32(n)}.put(buf)
			g.mu.Lock()
			_, err := g.conn.Write(buf[:HeaderSize+n])
			g.mu.Unlock()
			if err != nil {
				return err
			}
		}
		if rerr == io.EOF {
			return nil
		}
		if rerr != nil {
			return rerr
		}
	}
}

// EndOutput sends the end of output stream s. It must come once.
func (g *Guest) EndOutput(s Stream) error { return g.frame(Header{Type: TypeEOF, Stream: s}, nil) }

// CopyInput writes the command's input to w until its end, which is nil; or
// until w fails, after which the host is told that nobody reads.
func (g *Guest) CopyInput(w io.Writer) error {
	for {
		p, cost, err := g.in.take()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		_, werr := w.Write(p)
		if err := g.returnCredit(g.in.done(p, cost)); err != nil {
			return err
		}
		if werr != nil {
			return g.CloseInput()
		}
	}
}

// CloseInput tells the host that the command reads its input no longer. What
// still comes is discarded.
func (g *Guest) CloseInput() error {
	if err := g.returnCredit(g.in.drop()); err != nil {
		return err
	}
	return g.frame(Header{Type: TypeEOF, Stream: Stdin}, nil)
}

func (g *Guest) returnCredit(n int) error {
	if n == 0 {
		return nil
	}
	return g.frame(Header{Type: TypeCredit, Stream: Stdin, Arg: uint64(n)}, nil)
}

// Run takes the host's frames until BYE, which is nil, or until the link
// breaks. It never waits for anything but the Conn.
func (g *Guest) Run() error {
	err := g.run()
	g.in.close()
	for _, f := range g.out {
		f.close()
	}
	return err
}

func (g *Guest) run() error {
	fr := frameReader{r: g.conn, peer: host}
	for {
		f, p, err := fr.next()
		if err != nil {
			return fmt.Errorf("agent link: %w", err)
		}
		done, err := g.handle(f, p)
		if err != nil {
			return fmt.Errorf("agent link: %w", err)
		}
		if done {
			return nil
		}
	}
}

func (g *Guest) handle(f Header, p []byte) (done bool, err error) {
	switch f.Type {
	case TypeStart:
		var job Job
		if err := json.Unmarshal(p, &job); err != nil {
			return false, corruptf("START payload: %v", err)
		}
		if g.h.Start != nil {
			g.h.Start(job)
		}
	case TypeData:
		// The credit of discarded input is kept: this goroutine must not wait
		// for the host to read, and the host was told to stop sending.
		_, err := g.in.push(p)
		return false, err
	case TypeEOF:
		if f.Stream == Stdin {
			return false, g.in.pushEOF()
		}
		g.out[f.Stream].close()
		if g.h.Closed != nil {
			g.h.Closed(f.Stream)
		}
	case TypeCredit:
		return false, g.out[f.Stream].grant(f.Arg)
	case TypeSignal:
		if f.Arg != 0 && g.h.Signal != nil {
			g.h.Signal(int(f.Arg))
		}
	case TypeResize:
		if g.h.Resize != nil {
			g.h.Resize(uint16(f.Arg>>16), uint16(f.Arg))
		}
	case TypeBye:
		if g.h.Bye != nil {
			g.h.Bye()
		}
		return true, nil
	}
	return false, nil
}
