# Connects as Perl does: `dial.pl ADDRESS PORT`.
use strict;
use IO::Socket::INET;

my $socket = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => $ARGV[1], Proto => "tcp", Timeout => 20);
if (!$socket) {
    print "perl error=$!\n";
    exit 1;
}
# Once both ends have closed, a socket has no peer to tell.
my $peer = $socket->peerhost;
print $socket "sent by perl";
shutdown $socket, 1;
local $/;
print "perl peer=$peer received=", scalar <$socket>, "\n";
