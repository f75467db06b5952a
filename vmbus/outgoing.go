package vmbus

import (
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// An outgoing message waits for room in the guest's queue. sent, which may be
// nil, runs when it was posted, or when it turned out that it cannot be.
type outgoing struct {
	vp   hv.VPIndex
	msg  proto.Message
	sent func()
}

// reopenPort replaces the message port, which drops what is queued in it and
// in out: another kernel is going to listen, or none.
func (s *Server) reopenPort() {
	if s.port != nil {
		s.port.Close()
	}
	s.out = nil
	s.port = s.cfg.Host.OpenMessagePort(messagePort, SINT, func() {
		select {
		case s.room <- struct{}{}:
		default:
		}
	})
}

// send queues a message to the VP that the guest chose. The queue needs no
// bound of its own: a message of the guest causes at most one answer, or the
// offers of all channels, and none is read while answers wait.
func (s *Server) send(msg proto.Message) { s.sendThen(msg, nil) }

func (s *Server) sendThen(msg proto.Message, sent func()) {
	s.out = append(s.out, outgoing{s.conn.vp, msg, sent})
}

// flush posts what it can.
func (s *Server) flush() {
	for len(s.out) > 0 {
		o := s.out[0]
		st := s.port.Post(o.vp, hv.NewMessage(hv.MessageVMBus, proto.Encode(o.msg)))
		if st == hv.StatusInsufficientBuffers {
			return // free fills room
		}
		s.out = s.out[1:]
		if st != hv.StatusSuccess {
			s.log.printf("%v to VP %d: %v: dropped", o.msg.MessageType(), o.vp, st)
		}
		if o.sent != nil {
			o.sent()
		}
	}
	s.out = nil
}
