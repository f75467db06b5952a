package vmbus

import (
	"fmt"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// A gpadlKey names a GPADL: ids are unique per channel.
type gpadlKey struct {
	relid proto.RelID
	id    proto.GPADLID
}

// A gpadl is a list of guest pages that the guest lent to a channel. It
// belongs to the server's goroutine, except for its ranges, which do not
// change once it is complete.
type gpadl struct {
	key    gpadlKey
	parser *proto.RangeParser // nil when complete
	ranges []guest.PageRange
	cost   uint64 // see proto.RangeParser
	refs   int
	torn   bool // the guest wants it back
}

// gpadlHeader begins a GPADL. Linux waits for the answer without end, so there
// is one in every case.
func (s *Server) gpadlHeader(m proto.GPADLHeader, rest []byte) {
	key := gpadlKey{m.RelID, m.GPADL}
	c := s.channel(m.RelID)
	refuse := ""
	switch {
	case c == nil || !c.offered:
		refuse = "no such channel"
	case s.gpadls[key] != nil:
		refuse = "id in use"
	case s.partial[m.GPADL] != nil:
		// Bodies name no channel, so incomplete ids must differ among all.
		refuse = "id in use by an incomplete one"
	case len(s.gpadls)+len(s.partial) >= MaxGPADLs:
		refuse = "too many GPADLs"
	case len(s.partial) >= MaxPartialGPADLs:
		refuse = "too many incomplete GPADLs"
	}
	if refuse != "" {
		s.log.printf("guest: GPADL %#x of channel %d: %s", uint32(m.GPADL), m.RelID, refuse)
		s.gpadlCreated(key, proto.StatusGPADLFailure)
		return
	}
	g := &gpadl{key: key}
	g.parser = proto.NewRangeParser(int(m.RangeCount), MaxGPADLPages-s.pages, s.checkPFN)
	s.partial[m.GPADL] = g
	s.gpadlFeed(g, rest)
}

// checkPFN refuses pages that are not RAM.
func (s *Server) checkPFN(pfn uint64) error {
	if a, ok := guest.PageGPA(pfn); !ok || !s.cfg.Memory.Contains(a, guest.PageSize) {
		return fmt.Errorf("page %#x: %w", pfn, guest.ErrRange)
	}
	return nil
}

func (s *Server) gpadlBody(m proto.GPADLBody, rest []byte) {
	g := s.partial[m.GPADL]
	if g == nil {
		// Complete already, refused at an earlier message, or never begun.
		s.log.printf("guest: %v for GPADL %#x, which waits for none: ignored", proto.MsgGPADLBody, uint32(m.GPADL))
		return
	}
	s.gpadlFeed(g, rest)
}

// gpadlFeed adds the ranges of one message and answers when they are complete
// or wrong.
func (s *Server) gpadlFeed(g *gpadl, rest []byte) {
	done, err := g.parser.Feed(rest)
	// What has arrived counts; what is announced is checked against the limit
	// by the parser, which saw the sum of the others when it was made.
	cost := g.parser.Cost()
	s.pages += cost - g.cost
	g.cost = cost
	if err == nil && s.pages > MaxGPADLPages {
		err = fmt.Errorf("%w: over %d pages in all", proto.ErrRange, MaxGPADLPages)
	}
	if err == nil && !done {
		return
	}
	delete(s.partial, g.key.id)
	if err != nil {
		s.pages -= g.cost
		s.log.printf("guest: GPADL %#x of channel %d: %v", uint32(g.key.id), g.key.relid, err)
		s.gpadlCreated(g.key, proto.StatusGPADLFailure)
		return
	}
	g.ranges, g.parser = g.parser.Ranges(), nil
	s.gpadls[g.key] = g
	s.gpadlCreated(g.key, proto.StatusSuccess)
}

func (s *Server) gpadlCreated(key gpadlKey, status uint32) {
	s.send(proto.GPADLCreated{RelID: key.relid, GPADL: key.id, Status: status})
}

// gpadlTeardown answers when the last user has let the GPADL go, and at once
// for one that nobody knows: the guest waits without end.
func (s *Server) gpadlTeardown(m proto.GPADLTeardown) {
	g := s.gpadls[gpadlKey{m.RelID, m.GPADL}]
	if p := s.partial[m.GPADL]; g == nil && p != nil && p.key.relid == m.RelID {
		delete(s.partial, m.GPADL)
		s.pages -= p.cost
		s.send(proto.GPADLTorndown{GPADL: m.GPADL})
		return
	}
	if g == nil {
		// The answer names no channel. If another one has a GPADL of this id,
		// it must not look as if that were free.
		for key := range s.gpadls {
			if key.id == m.GPADL {
				s.log.printf("guest: teardown of GPADL %#x, which is not channel %d's: ignored", uint32(m.GPADL), m.RelID)
				return
			}
		}
		s.log.printf("guest: teardown of GPADL %#x, which does not exist", uint32(m.GPADL))
		s.send(proto.GPADLTorndown{GPADL: m.GPADL})
		return
	}
	if g.torn {
		s.log.printf("guest: teardown of GPADL %#x for the second time: ignored", uint32(m.GPADL))
		return
	}
	g.torn = true
	s.gpadlDrop(g)
}

// gpadlDrop forgets g if the guest wants it back and nobody uses it.
func (s *Server) gpadlDrop(g *gpadl) {
	if !g.torn || g.refs > 0 || s.gpadls[g.key] != g {
		return
	}
	delete(s.gpadls, g.key)
	s.pages -= g.cost
	s.send(proto.GPADLTorndown{GPADL: g.key.id})
}

// gpadlForget drops all GPADLs of a channel that is no more, without a word.
// Preconditions: its Serve has returned.
func (s *Server) gpadlForget(relid proto.RelID) {
	for key, g := range s.gpadls {
		if key.relid == relid {
			delete(s.gpadls, key)
			s.pages -= g.cost
		}
	}
	for id, g := range s.partial {
		if g.key.relid == relid {
			delete(s.partial, id)
			s.pages -= g.cost
		}
	}
}

// A GPADL is guest memory that the guest lent to a channel. It keeps the guest
// from getting an answer to its teardown until Release, or until Serve
// returns.
type GPADL struct {
	ch *Channel
	g  *gpadl
}

// Ranges returns the pages: memory that the guest writes at any time. The
// result is shared and must not be changed.
func (g *GPADL) Ranges() []guest.PageRange { return g.g.ranges }

// Size returns the bytes of all ranges.
func (g *GPADL) Size() uint64 {
	var n uint64
	for _, r := range g.g.ranges {
		n += uint64(r.ByteCount)
	}
	return n
}

// Slice appends to dst the pieces of the n bytes at offset off, counted
// through all ranges, with page lists shared with the GPADL. An offset or
// length beyond its end is guest.ErrRange.
func (g *GPADL) Slice(dst []guest.PageRange, off, n uint64) ([]guest.PageRange, error) {
	if size := g.Size(); off > size || n > size-off {
		return dst, fmt.Errorf("GPADL %#x: %d bytes at %d of %d: %w", uint32(g.g.key.id), n, off, size, guest.ErrRange)
	}
	for _, r := range g.g.ranges {
		if n == 0 {
			break
		}
		if off >= uint64(r.ByteCount) {
			off -= uint64(r.ByteCount)
			continue
		}
		k := min(n, uint64(r.ByteCount)-off)
		at := uint64(r.ByteOffset) + off
		piece := guest.PageRange{ByteOffset: uint32(at % guest.PageSize), ByteCount: uint32(k)}
		first := at / guest.PageSize
		piece.PFNs = r.PFNs[first : first+guest.PagesFor(piece.ByteOffset, piece.ByteCount)]
		dst = append(dst, piece)
		off, n = 0, n-k
	}
	return dst, nil
}

// access calls f for the pieces of the n bytes at off, each inside one page.
func (g *GPADL) access(off uint64, n int, f func(a guest.GPA, k int) error) error {
	pieces, err := g.Slice(nil, off, uint64(n))
	if err != nil {
		return err
	}
	for _, r := range pieces {
		left := int(r.ByteCount)
		at := int(r.ByteOffset)
		for _, pfn := range r.PFNs {
			k := min(left, guest.PageSize-at)
			a, _ := guest.PageGPA(pfn)
			if err := f(a+guest.GPA(at), k); err != nil {
				return err
			}
			left, at = left-k, 0
		}
	}
	return nil
}

// ReadAt copies len(p) bytes at offset off out of the GPADL.
func (g *GPADL) ReadAt(p []byte, off uint64) error {
	return g.access(off, len(p), func(a guest.GPA, k int) error {
		err := g.ch.srv.cfg.Memory.ReadAt(p[:k], a)
		p = p[k:]
		return err
	})
}

// WriteAt copies p to offset off of the GPADL.
func (g *GPADL) WriteAt(p []byte, off uint64) error {
	return g.access(off, len(p), func(a guest.GPA, k int) error {
		err := g.ch.srv.cfg.Memory.WriteAt(p[:k], a)
		p = p[k:]
		return err
	})
}

// Release gives the GPADL back. Releasing it twice is a bug and panics.
func (g *GPADL) Release() {
	held := true
	g.ch.srv.do(func() {
		if held = g.ch.held[g]; held {
			g.ch.drop(g)
		}
	})
	if !held {
		panic(fmt.Sprintf("vmbus: GPADL %#x released twice", uint32(g.g.key.id)))
	}
}
