# Stands between the program and the engine, and knows no BuildKit sessions, as engines to come.
use strict; use IO::Socket::UNIX; use IO::Select;
rename '/run/docker.sock', '/run/docker.real' or die;
my $listener = IO::Socket::UNIX->new(Local => '/run/docker.sock', Listen => 64) or die;
$SIG{CHLD} = 'IGNORE';
while (1) {
  my $client = $listener->accept or next;
  next if fork;
  my $engine = IO::Socket::UNIX->new(Peer => '/run/docker.real') or die;
  my $both = IO::Select->new($client, $engine);
  while (my @ready = $both->can_read) {
    for my $from (@ready) {
      sysread($from, my $bytes, 65536) or exit;
      if ($from == $client && $bytes =~ m{^POST \S*/(grpc|session)}) {
        syswrite $client, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        exit;
      }
      my $to = $from == $client ? $engine : $client;
      for (my $done = 0; $done < length $bytes;) { $done += syswrite($to, $bytes, length($bytes) - $done, $done) // exit }
    }
  }
}
