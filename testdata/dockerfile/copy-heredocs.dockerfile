# escape=`
FROM alpine
ENV x=1
COPY <<plain.txt <<"quoted.txt" file <<-tabs.txt /etc/
it's $x and \$x and a\nb "q" ${undefined:-d}
plain.txt
it's $x and \$x
quoted.txt
		$x
	tabs.txt
