// Package wire is the language spoken between a client of the emulated host, the daemon that owns QEMU, and
// PID 1 inside: frames, the messages carried in them, and credit flow control per stream.
//
// The same frames travel over two hops, the daemon's Unix socket and a virtio-serial port, so that the daemon
// relays payloads it never looks at. The package knows nothing of QEMU, processes or files; it is tested over
// pipes alone.
//
// One session is one command. Three streams (stdin, stdout, stderr) share a session, each with its own window:
// a sender may have at most Window bytes on the way that the receiver has not given back with a Credit frame.
// So no reader of a link ever has to wait for a slow command or a slow terminal, and every queue is bounded.
package wire
