# Listens on the gateway's port, and does nothing else.
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalAddr => q(127.0.0.1:18789), Listen => 1, ReuseAddr => 1) or die;
sleep
